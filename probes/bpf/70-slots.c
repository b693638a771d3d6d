/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * What the probed functions do to a slot. The generated readers below call these with the argument's value.
 */
static inline __attribute__((always_inline)) struct af_thread *af_hit_thread(u64 ip)
{
	struct af_thread *t = af_thread_now();
	if (t)
		t->hit_ip = ip;
	return t;
}

static inline __attribute__((always_inline)) int af_hit_create(struct pt_regs *ctx, u64 addr)
{
	u64 ip = ctx->ip;
	struct af_target *target = af_target_now();
	if (!target || addr < 4096)
		return 0;
	u64 now = bpf_ktime_get_ns();
	u32 tgid = af_tgid();
	af_hit_thread(ip);
	struct af_slot *slot = af_slot_find(tgid, addr);
	af_count(AF_C_HITS_CREATE);
	if (!slot) {
		slot = af_slot_new(tgid, addr);
		if (!slot)
			return 0;
		slot->state = AF_SLOT_LIVE;
		slot->gen = 1;
		slot->live_from = 1;
		slot->flags = AF_S_CREATE_SEEN;
	} else {
		af_slot_reborn(target, slot, AF_S_CREATE_SEEN);
	}
	/* the site says where; a stack would cost a microsecond of every connection */
	af_at_set(&slot->create, now, now, ip, (u32)bpf_get_current_pid_tgid(), -1);
	af_record(AF_CREATED, 0, now, ip, addr, slot->gen, -1, -1, 0, 0, -1);
	return 0;
}

static inline __attribute__((always_inline)) u64 af_signature(struct af_slot *slot, struct af_target *target, struct af_reg *reg,
					  u32 tid)
{
	u32 f = slot->flags;
	u64 sig = 0;
	u32 waiter = slot->waiter;
	if (slot->add.ts)
		sig |= AF_SIG_ADD;
	if (f & AF_S_ADD_BY_OTHER)
		sig |= AF_SIG_ADD_OTHER;
	if (slot->deliveries)
		sig |= AF_SIG_DELIVERED;
	if (f & AF_S_DELETED)
		sig |= AF_SIG_DEL;
	else if (slot->del.ts)
		sig |= AF_SIG_DEL_AFTER_CLOSE;
	if (f & AF_S_DEL_BY_OTHER)
		sig |= AF_SIG_DEL_OTHER;
	if (slot->close.ts)
		sig |= AF_SIG_CLOSE;
	if (f & AF_S_CLOSE_BY_OTHER)
		sig |= AF_SIG_CLOSE_OTHER;
	if (slot->after_close)
		sig |= AF_SIG_AFTER_CLOSE;
	if (f & AF_S_DESTROY_BY_OTHER)
		sig |= AF_SIG_DESTROY_OTHER;
	if (f & AF_S_CLOSE_IN_BATCH)
		sig |= AF_SIG_CLOSE_IN_BATCH;
	if (f & AF_S_INFERRED)
		sig |= AF_SIG_INFERRED;
	if (f & AF_S_ORPHANED)
		sig |= AF_SIG_ORPHANED;
	if (f & AF_S_FORK_SHARED)
		sig |= AF_SIG_FORK_SHARED;
	if (f & AF_S_WAITER_KNOWN)
		sig |= AF_SIG_WAITER_KNOWN;
	if (reg)
		sig |= AF_SIG_REGISTERED;
	return sig;
}

/* Does the slot still hold the object it was registered with? Not when another protocol took it over: then
 * the dispatch probe says nothing about it. */
static inline __attribute__((always_inline)) bool af_holds_object(struct af_slot *slot)
{
#if AF_HAVE_DISPATCH
	u64 object = 0;
	if (!slot->object || bpf_probe_read_user(&object, sizeof(object), (void *)(slot->addr + AF_OBJECT_OFFSET)))
		return false;
	return object == slot->object;
#else
	return false;
#endif
}

static inline __attribute__((always_inline)) bool af_undispatched(struct af_slot *slot, u32 tid, bool holds)
{
	if (slot->state != AF_SLOT_LIVE || !af_in_open_batch(slot))
		return false;
#if AF_HAVE_DISPATCH
	return holds && slot->undispatched;
#else
	return slot->last_tid != tid;
#endif
}

static inline __attribute__((always_inline)) int af_hit_destroy(struct pt_regs *ctx, u64 addr)
{
	u64 ip = ctx->ip;
	struct af_target *target = af_target_now();
	if (!target || addr < 4096)
		return 0;
	u64 now = bpf_ktime_get_ns();
	u32 tgid = af_tgid(), tid = (u32)bpf_get_current_pid_tgid();
	struct af_thread *t = af_hit_thread(ip);
	struct af_slot *slot = af_slot_find(tgid, addr);
	s32 stack = af_stack_id(ctx);
	struct af_at at;
	u16 flags = 0;
	af_count(AF_C_HITS_DESTROY);
	af_at_set(&at, now, now, ip, tid, stack);
	if (!slot) {
		slot = af_slot_new(tgid, addr);
		if (!slot)
			return 0;
		slot->state = AF_SLOT_LIVE;
		slot->flags = AF_S_INFERRED;
		flags = AF_F_UNKNOWN | AF_F_INFERRED;
	}
	bool holds = af_holds_object(slot);
	af_record(AF_DESTROYED, flags, now, ip, addr, slot->gen, slot->fd, slot->epfd, 0, holds, stack);
	struct af_trigger_args a = {.ts = now, .enter = ip, .addr = addr, .gen = slot->gen, .fd = slot->fd,
				    .epfd = slot->epfd, .ret = 0, .arg = 0, .stack = stack, .kind = AF_DESTROYED};
	if (slot->state == AF_SLOT_FREE) {
		slot->double_destroys += 1;
		af_suspect(AF_SUSPECT_DOUBLE_DESTROY, &a, t, slot, 0, 0);
		return 0;
	}
	struct af_reg *reg = af_reg_current(slot);
	struct af_reg *raw = slot->fd >= 0 ? af_reg_find(tgid, slot->epfd, slot->fd) : 0;
	if (raw && raw->slot == addr && raw->gen == slot->gen && (raw->flags & AF_R_ENDING))
		slot->flags |= AF_S_CLOSE_PENDING;
	if (!reg && slot->old_fd >= 0 && slot->old_gen >= slot->live_from)
		reg = af_reg_old(slot, target);
	bool in_batch = af_undispatched(slot, tid, holds);
	slot->state = AF_SLOT_FREE;
	slot->destroy = at;
	u32 waiter = slot->fd >= 0 ? af_waiter(tgid, slot->epfd) : 0;
	if (waiter) {
		slot->waiter = waiter;
		slot->flags |= AF_S_WAITER_KNOWN;
		if (waiter != tid)
			slot->flags |= AF_S_DESTROY_BY_OTHER;
	}
	af_lifetime_out(slot, af_signature(slot, target, reg, tid));
	if (reg)
		af_suspect(AF_SUSPECT_FREED_REGISTERED, &a, t, slot, reg, 0);
	if (in_batch)
		af_suspect(AF_SUSPECT_FREED_IN_BATCH, &a, t, slot, reg, 0);
	return 0;
}

static inline __attribute__((always_inline)) int af_hit_disown(struct pt_regs *ctx, u64 addr)
{
	u64 ip = ctx->ip;
	if (!af_target_now())
		return 0;
	u64 now = bpf_ktime_get_ns();
	af_hit_thread(ip);
	struct af_slot *slot = af_slot_find(af_tgid(), addr);
	af_count(AF_C_HITS_DISOWN);
	af_record(AF_DISOWNED, slot ? 0 : AF_F_UNKNOWN, now, ip, addr, slot ? slot->gen : 0, -1, -1, 0, 0, -1);
	return 0;
}

static inline __attribute__((always_inline)) int af_hit_dispatch(struct pt_regs *ctx, u64 object)
{
	u64 ip = ctx->ip;
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_hit_thread(ip);
	if (!t)
		return 0;
	u64 now = bpf_ktime_get_ns();
	u32 tgid = af_tgid();
	struct af_slot *slot = 0;
	struct af_slot_key key = {.tgid = tgid, .addr = object};
	bool known = false;
	af_count(AF_C_HITS_DISPATCH);
	u64 *addr = object >= 4096 ? objects.lookup(&key) : 0;
	if (addr) {
		slot = af_slot_find(tgid, *addr);
		known = slot != 0;
	}
	/* null, not canonical (0xaa fill), or itself a slot's address: a free-list link read as an object */
	bool garbage = object < 4096 || (object >> 47) || (!known && af_slot_find(tgid, object));
	if (!slot && garbage && t->stale_slot)
		slot = af_slot_find(tgid, t->stale_slot);
	/* quiet while its deliveries are (af_delivered) */
	if (!slot || slot->consecutive < AF_QUIET_AFTER || af_worth_sending(slot->consecutive, true))
		af_record(AF_DISPATCHED, known ? 0 : AF_F_UNKNOWN, now, ip, object, slot ? slot->gen : 0, -1,
			  t->wait_epfd, 0, slot ? (u32)slot->addr : 0, -1);
	if (known && slot->state == AF_SLOT_LIVE) {
		slot->dispatches += 1;
		slot->last_dispatch = now;
		if (slot->undispatched)
			slot->undispatched -= 1;
		return 0;
	}
	if (!garbage && !(slot && slot->state == AF_SLOT_FREE))
		return 0;
	if (slot) {
		slot->stale_dispatches += 1;
		if (!af_worth_sending(slot->stale_dispatches, slot->consecutive > 0))
			return 0;
	}
	struct af_trigger_args a = {.ts = now, .enter = ip, .addr = object, .gen = slot ? slot->gen : 0,
				    .fd = slot ? slot->fd : -1, .epfd = t->wait_epfd, .ret = 0, .arg = 0,
				    .stack = af_stack_id(ctx), .kind = AF_DISPATCHED};
	struct af_reg *reg = slot && slot->fd >= 0 ? af_reg_find(tgid, slot->epfd, slot->fd) : 0;
	af_suspect(AF_SUSPECT_STALE_DISPATCH, &a, t, slot, reg, 0);
	return 0;
}
