/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * What the probed functions do to a slot. The generated readers below call these with the argument's value and the
 * address that the hit is told as: a probe may sit on a branch that leads to the place.
 */
AF_FN struct af_thread *af_hit_thread(u64 ip)
{
	struct af_thread *t = af_thread_now();
	if (t)
		t->hit_ip = ip;
	return t;
}

/* A create gave out nothing. What this thread destroyed last, and was free, it had taken itself: it gave it back. */
AF_FN void af_create_failed(struct af_target *target)
{
	struct af_thread *t = af_thread_now();
	if (!t || t->pending_first == t->pending_next)
		return;
	struct af_pending_key key = {.id = bpf_get_current_pid_tgid(), .index = (t->pending_next - 1) & (AF_PENDING - 1)};
	struct af_pending_slot *p = pending.lookup(&key);
	if (!p || p->judge != AF_S_TWICE_PENDING)
		return;
	struct af_slot *slot = af_slot_find(target, p->addr);
	if (!slot || slot->gen != p->gen || !(slot->flags & AF_S_TWICE_PENDING))
		return;
	af_unflag(slot, AF_S_TWICE_PENDING | AF_S_DOUBLED);
	slot->double_destroys -= 1;
	pending.delete(&key);
	t->pending_next -= 1;
}

AF_FN void af_created(struct pt_regs *ctx, struct af_target *target, u64 ip, u64 addr, struct af_scratch *s)
{
	u64 now = bpf_ktime_get_ns();
	af_hit_thread(ip);
	struct af_slot *slot = af_slot_find(target, addr);
	af_count(AF_C_HITS_CREATE);
	if (!slot) {
		slot = af_slot_new(target, addr);
		if (!slot)
			return;
		slot->state = AF_SLOT_LIVE;
		slot->gen = 1;
		slot->live_from = 1;
		slot->flags = AF_S_CREATE_SEEN;
	} else if (slot->state == AF_SLOT_LIVE && !(slot->flags & AF_S_CREATE_SEEN) && slot->adder) {
		/* it was registered by the create that gives it out now */
		af_unflag(slot, AF_S_UNBORN | AF_S_INFERRED | AF_S_ADD_FREED);
		af_flag(slot, AF_S_CREATE_SEEN);
		slot->adder = 0;
		af_count(AF_C_ADDS_CREATED);
	} else if (slot->state == AF_SLOT_LIVE && (slot->flags & AF_S_CREATE_SEEN) && !slot->add.ts && !af_linked(slot)) {
		/* never registered: a create within a create (one constructor calls another), or a life of no interest */
		slot->adder = 0;
	} else {
		af_slot_reborn(target, slot, AF_S_CREATE_SEEN, s);
	}
	/* the site says where; a stack would cost a microsecond of every connection */
	af_at_set(&slot->create, now, now, ip, (u32)bpf_get_current_pid_tgid(), -1);
	af_record(AF_CREATED, 0, now, ip, addr, slot->gen, -1, -1, 0, 0, -1);
}

AF_FN int af_hit_create(struct pt_regs *ctx, u64 ip, u64 addr)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	if (addr < 4096) {
		af_create_failed(target);
		return 0;
	}
	struct af_scratch *s = af_scratch_take();
	if (!s)
		return 0;
	af_created(ctx, target, ip, addr, s);
	af_scratch_give(s);
	return 0;
}

#if AF_COUNT_OFFSET >= 0
/* A destroy that only takes one of several references frees nothing. */
AF_FN bool af_frees(u64 addr)
{
	u64 count = 0;
	if (bpf_probe_read_user(&count, AF_COUNT_SIZE, (void *)(addr + AF_COUNT_OFFSET))) {
		af_count(AF_C_READ_FAULT);
		return true;
	}
	return count == AF_FREES_AT;
}
#endif

#define AF_PENDING_NO 0
#define AF_PENDING_YES 1
#define AF_PENDING_UNKNOWN 2
#define AF_PENDING_HELD 4   /* certain, in an outer batch */
#define AF_PENDING_UNTOLD 3 /* unknown, and only counted */

/* Is a delivery of the slot still to be worked on, in a batch that is open and names it? Only a dispatch tells. */
AF_FN u32 af_undispatched(struct af_target *target, struct af_slot *slot, bool holds, u64 sp, u32 *nested)
{
	struct af_batch *b = slot->state == AF_SLOT_LIVE ? af_batch_of(target, slot, slot->last_batch, slot->last_index, sp) : 0;
	struct af_batch *held = slot->state == AF_SLOT_LIVE && slot->held_batch
					? af_batch_of(target, slot, slot->held_batch, slot->held_index, sp)
					: 0;
	if (held) { /* the outer loop comes to it when the inner one is through */
		*nested = held->nested;
		return AF_PENDING_HELD;
	}
	if (!b)
		return AF_PENDING_NO;
	*nested = b->nested;
#if AF_HAVE_DISPATCH
	/* of a slot that another protocol took over the dispatch says nothing */
	if (!holds)
		return AF_PENDING_UNTOLD;
	if (!slot->undispatched)
		return AF_PENDING_NO;
	return af_tells(target, slot) && slot->undispatched > slot->doubtful ? AF_PENDING_YES : AF_PENDING_UNTOLD;
#endif
	/* the first event of a batch is being worked on, as far as anybody can tell */
	return slot->last_index || slot->last_tid != (u32)bpf_get_current_pid_tgid() ? AF_PENDING_UNKNOWN
										      : AF_PENDING_NO;
}

/* The return address, where the probe is at a function's entry; else 0. */
AF_FN u64 af_destroy_begun(struct af_thread *t, struct pt_regs *ctx, u64 ip, u64 addr, bool entry)
{
	struct af_destroy *d = &t->destroys[t->destroyed & (AF_DESTROYS - 1)];
	t->destroyed += 1;
	d->addr = addr;
	d->sp = ctx->sp;
	d->ip = ip;
	d->ret = 0;
	if (entry)
		bpf_probe_read_user(&d->ret, sizeof(d->ret), (void *)ctx->sp);
	return d->ret;
}

AF_FN void af_destroyed(struct pt_regs *ctx, struct af_target *target, u64 ip, u64 addr, bool entry,
			  struct af_scratch *s)
{
	u64 now = bpf_ktime_get_ns();
	u32 tid = (u32)bpf_get_current_pid_tgid();
	struct af_thread *t = af_hit_thread(ip);
	if (!t)
		return;
	struct af_slot *slot = af_slot_find(target, addr);
	af_count(AF_C_HITS_DESTROY);
	if (slot && slot->state == AF_SLOT_FREE && af_within_destroy(t, addr, ctx->sp, ip))
		return; /* a destructor called by a destructor: one destroy */
	s32 stack = af_stack_id_in(ctx, af_destroy_begun(t, ctx, ip, addr, entry), s);
	u16 flags = 0;
	if (!slot) {
		slot = af_slot_new(target, addr);
		if (!slot)
			return;
		slot->state = AF_SLOT_LIVE;
		slot->flags = AF_S_INFERRED;
		flags = AF_F_UNKNOWN | AF_F_INFERRED;
		if (AF_CREATE_COMPLETE && !(target->flags & AF_T_LATE))
			af_count(AF_C_DESTROYS_UNKNOWN);
	}
	if (slot->state == AF_SLOT_FREE && slot->adder) {
		/* registered by a create that has not returned yet, and ended already: that is its next life */
		af_slot_reborn(target, slot, AF_S_INFERRED, s);
	}
	if (slot->flags & AF_S_UNBORN) {
		af_unflag(slot, AF_S_UNBORN);
		af_flag(slot, AF_S_INFERRED);
	}
	af_resolve(target, slot);
	bool holds = af_holds_object(slot);
	af_record(AF_DESTROYED, flags, now, ip, addr, slot->gen, slot->fd, slot->epfd, 0, holds, stack);
	struct af_trigger_args *a = &s->args;
	__builtin_memset(a, 0, sizeof(*a));
	a->ts = now;
	a->enter = ip;
	a->addr = addr;
	a->gen = slot->gen;
	a->fd = slot->fd;
	a->epfd = slot->epfd;
	a->stack = stack;
	a->kind = AF_DESTROYED;
	/* no create gave it out, nobody registered it: another kind of object, which the same code ends */
	if (slot->state == AF_SLOT_FREE && AF_CREATE_COMPLETE && !slot->gen && slot->fd < 0 && !slot->add.ts)
		return;
	if (slot->state == AF_SLOT_FREE) {
		slot->double_destroys += 1;
		af_flag(slot, AF_S_DOUBLED);
		af_at_set(&slot->again, now, now, ip, tid, stack);
		if (!(slot->flags & AF_S_TWICE_PENDING)) {
			af_flag(slot, AF_S_TWICE_PENDING);
			af_put_off(t, slot, AF_S_TWICE_PENDING);
		}
		return;
	}
	u32 nested = 0;
	AF_KEPT(s->in_batch) = af_undispatched(target, slot, holds, ctx->sp, &nested);
#define in_batch AF_KEPT(s->in_batch)
	slot->state = AF_SLOT_FREE;
	slot->adder = 0;
	af_at_set(&slot->destroy, now, now, ip, tid, stack);
	if (in_batch == AF_PENDING_NO && !AF_OBJECT_IS_SLOT)
		slot->undispatched = 0; /* its object's memory may be another's from now on */
	if (in_batch == AF_PENDING_HELD)
		a->flags |= AF_F_HELD;
	if (in_batch == AF_PENDING_UNKNOWN || in_batch == AF_PENDING_UNTOLD) {
		af_flag(slot, AF_S_NOT_JUDGED);
		af_count(AF_C_NOT_JUDGED);
		target->not_judged += 1;
		if (in_batch == AF_PENDING_UNTOLD || (target->not_judged & (target->not_judged - 1)))
			in_batch = AF_PENDING_NO; /* told at doublings */
		a->flags |= AF_F_NOT_JUDGED;
		a->arg = (u32)target->not_judged;
	}
	if (in_batch == AF_PENDING_YES) {
		/* what the thread with the batch may read as an object */
		u64 id = ((u64)slot->tgid << 32) | slot->last_tid;
		struct af_thread *holder = threads.lookup(&id);
		if (holder && !holder->stale_slot)
			holder->stale_slot = slot->addr;
	}
	AF_KEPT(s->registered) = af_existing(slot, slot->live_from, slot->gen + 1, AF_WHENEVER, false, s);
#define registered AF_KEPT(s->registered)
	if (registered || af_remembered(slot, s))
		af_slot_waiter(slot, s->reg.ep, tid, AF_S_DESTROY_BY_OTHER);
	if (registered) {
		af_flag(slot, AF_S_PENDING); /* judged when this call is over */
		af_put_off(t, slot, AF_S_PENDING | AF_S_CLOSE_PENDING);
	} else {
		af_lifetime_out(slot, af_signature(slot, false));
	}
	if (in_batch != AF_PENDING_NO) {
		if (nested)
			a->flags |= AF_F_NESTED;
		if (!registered)
			AF_KEPT(s->reg.state) = AF_REG_NONE;
		af_suspect(AF_SUSPECT_FREED_IN_BATCH, a, slot->tgid, target, t, slot, &s->reg, 0);
	}
#undef in_batch
#undef registered
#if AF_OBJECT_OFFSET >= 0
	if (slot->object && slot->undispatched <= slot->doubtful) {
		/* its memory may be another slot's object soon, before that one is registered */
		struct af_slot_key key = {.tgid = slot->tgid, .epoch = slot->epoch, .addr = slot->object};
		u64 *owner = objects.lookup(&key);
		if (owner && *owner == addr)
			objects.delete(&key);
	}
#endif
}

AF_FN int af_hit_destroy(struct pt_regs *ctx, u64 ip, u64 addr, bool entry)
{
	struct af_target *target = af_target_now();
	if (!target || addr < 4096)
		return 0;
#if AF_COUNT_OFFSET >= 0
	if (!af_frees(addr))
		return 0;
#endif
	struct af_scratch *s = af_scratch_take();
	if (!s)
		return 0;
	af_destroyed(ctx, target, ip, addr, entry, s);
	af_scratch_give(s);
	return 0;
}

AF_FN int af_hit_disown(struct pt_regs *ctx, u64 ip, u64 addr)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	u64 now = bpf_ktime_get_ns();
	af_hit_thread(ip);
	struct af_slot *slot = af_slot_find(target, addr);
	af_count(AF_C_HITS_DISOWN);
	af_record(AF_DISOWNED, slot ? 0 : AF_F_UNKNOWN, now, ip, addr, slot ? slot->gen : 0, -1, -1, 0, 0, -1);
	return 0;
}

/* Is this a handler of `addr` called by the handler of another slot, and not by the loop? */
AF_FN bool af_within_dispatch(struct af_thread *t, u64 addr, u64 sp)
{
	struct af_handling *h = &t->handling;
	u64 ret = 0;
	if (!h->ret || h->addr == addr || h->batch != t->batch || sp >= h->sp)
		return false;
	return !bpf_probe_read_user(&ret, sizeof(ret), (void *)h->sp) && ret == h->ret;
}

/* A handler was called for a live slot. It answers one delivery, unless it was called by another slot's handler, or
 * from another place than the one before it, which may have answered the same one. */
AF_FN void af_dispatched(struct af_target *target, struct af_thread *t, struct af_slot *slot, u64 site, u64 sp,
			 bool entry, u64 now)
{
	bool within = af_within_dispatch(t, slot->addr, sp);
	slot->dispatches += 1;
	slot->last_dispatch = now;
	if (!within) {
		t->handling.addr = slot->addr;
		t->handling.sp = sp;
		t->handling.ret = entry ? site : 0;
		t->handling.batch = t->batch;
	}
	if (!slot->undispatched)
		return;
	bool first = slot->undispatched == slot->batch_count;
	if (within || (!first && site != slot->dispatch_site)) {
		if (slot->doubtful < slot->undispatched)
			slot->doubtful += 1;
		return;
	}
	slot->dispatch_site = site;
	__sync_fetch_and_or(&target->answered, AF_KIND(slot->last_events));
	slot->undispatched -= 1;
	if (slot->doubtful > slot->undispatched)
		slot->doubtful = slot->undispatched;
}

AF_FN void af_handled(struct pt_regs *ctx, struct af_target *target, u64 ip, u64 object, bool entry,
			  struct af_scratch *s)
{
	struct af_thread *t = af_hit_thread(ip);
	if (!t)
		return;
	u64 now = bpf_ktime_get_ns();
	af_count(AF_C_HITS_DISPATCH);
#if AF_OBJECT_IS_SLOT
	struct af_slot *slot = object >= 4096 ? af_slot_find(target, object - AF_OBJECT_DELTA) : 0;
	bool known = slot != 0;
#else
	struct af_slot *slot = 0;
	struct af_slot_key key = {.tgid = af_tgid(), .epoch = target->epoch, .addr = object};
	bool known = false;
	u64 *addr = object >= 4096 ? objects.lookup(&key) : 0;
	if (addr) {
		slot = af_slot_find(target, *addr);
		/* what an older life of the slot was about may be another one's by now, which no ADD has told of yet */
		if (slot && slot->state == AF_SLOT_LIVE && slot->object != object && !af_names_object(slot, object))
			slot = 0;
		known = slot != 0;
	}
#endif
	/* null, not canonical (0xaa fill), or itself a slot's address: a free-list link read as an object */
	bool garbage = object < 4096 || (object >> 47) || (!known && af_slot_find(target, object));
	if (!slot && garbage && t->stale_slot) {
		slot = af_slot_find(target, t->stale_slot);
		/* given out again since, or taken out of the batch by the loop */
		if (slot && (slot->state != AF_SLOT_FREE ||
			     !af_batch_of(target, slot, slot->last_batch, slot->last_index, ctx->sp)))
			return;
	}
	/* quiet while its deliveries are (af_delivered) */
	if (!slot || slot->consecutive < AF_QUIET_AFTER || af_worth_sending(slot->consecutive, true))
		af_record(AF_DISPATCHED, known ? 0 : AF_F_UNKNOWN, now, ip, object, slot ? slot->gen : 0, -1,
			  t->wait.epfd, 0, slot ? (u32)slot->addr : 0, -1);
	if (known && slot->state == AF_SLOT_LIVE) {
		u64 site = ip;
		if (entry)
			bpf_probe_read_user(&site, sizeof(site), (void *)ctx->sp);
		af_dispatched(target, t, slot, site, ctx->sp, entry, now);
		return;
	}
	if (!garbage && !(slot && slot->state == AF_SLOT_FREE))
		return;
	if (slot && known) {
		/* the memory of a freed object may be a new one's by now: only what a delivery is pending for counts,
		 * and not what the destroying call itself does to it */
		if (!slot->undispatched || af_within_destroy(t, slot->addr, ctx->sp, 0))
			return;
		/* it may have been answered by a function that is not probed, and the memory be another one's by now */
		if (slot->destroy.ts > slot->last_delivery && !af_tells(target, slot))
			return;
		/* where its delivery may have been answered already, only a batch that still names it shows the opposite */
		if (slot->undispatched <= slot->doubtful &&
		    !(AF_OBJECT_IS_SLOT && AF_CREATE_COMPLETE &&
		      af_batch_of(target, slot, slot->last_batch, slot->last_index, ctx->sp)))
			return;
		if (!slot->stale_dispatches && slot->destroy.ts > slot->last_delivery &&
		    slot->last_tid == (u32)bpf_get_current_pid_tgid() && af_open_batch(t, slot->last_batch)) {
			struct af_at *freed = &slot->destroy;
			struct af_trigger_args a = {.ts = freed->ts, .enter = freed->ip, .addr = slot->addr,
						    .gen = slot->gen, .fd = slot->fd, .epfd = slot->epfd,
						    .stack = freed->stack, .kind = AF_DESTROYED,
						    .flags = AF_F_PROVEN, .tid = freed->tid};
			af_remembered(slot, s);
			af_suspect(AF_SUSPECT_FREED_IN_BATCH, &a, slot->tgid, target, t, slot, &s->reg, 0);
		}
		slot->undispatched -= 1;
		af_flag(slot, AF_S_USED_AFTER);
	}
	if (slot) {
		slot->stale_dispatches += 1;
		if (!af_worth_sending(slot->stale_dispatches, slot->consecutive > 0))
			return;
	}
	struct af_trigger_args a = {.ts = now, .enter = ip, .addr = object, .gen = slot ? slot->gen : 0,
				    .fd = slot ? slot->fd : -1, .epfd = t->wait.epfd,
				    .stack = af_stack_id_in(ctx, 0, s), .kind = AF_DISPATCHED};
	s->reg.state = AF_REG_NONE;
	if (slot && !af_existing(slot, 0, slot->gen + 1, AF_WHENEVER, false, s))
		af_remembered(slot, s);
	af_suspect(AF_SUSPECT_STALE_DISPATCH, &a, af_tgid(), target, t, slot, &s->reg, 0);
}

AF_FN int af_hit_dispatch(struct pt_regs *ctx, u64 ip, u64 object, bool entry)
{
	struct af_target *target = af_target_now();
	struct af_scratch *s = target ? af_scratch_take() : 0;
	if (!s)
		return 0;
	af_handled(ctx, target, ip, object, entry, s);
	af_scratch_give(s);
	return 0;
}

/* One program of each role serves all readers of its argument. */
AF_FN int af_hand_on(struct pt_regs *ctx, int role, u64 ip, u64 value, u32 entry)
{
	struct af_thread *t = af_target_now() ? af_thread_now() : 0;
	if (!t)
		return 0;
	t->hit_ip = ip;
	t->hit_value = value;
	t->hit_entry = entry;
	hits.call(ctx, role);
	af_count(AF_C_TAILCALL_FAILED);
	return 0;
}
