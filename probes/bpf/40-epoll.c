/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * epoll_create, epoll_ctl and the epoll_wait family.
 */
static inline __attribute__((always_inline)) int af_call_enter(u32 call, s32 epfd, s32 fd)
{
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	t->enter = bpf_ktime_get_ns();
	t->call = call;
	t->epfd = epfd;
	t->fd = fd;
	return 0;
}

int af_enter_create(struct af_sys_enter *ctx) { return af_call_enter(AF_CALL_CREATE, -1, -1); }

int af_exit_create(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t || t->call != AF_CALL_CREATE)
		return 0;
	t->call = AF_CALL_NONE;
	if (ctx->ret < 0)
		return 0;
	u64 now = bpf_ktime_get_ns();
	struct af_fd_key key = {.tgid = af_tgid(), .fd = ctx->ret};
	waiters.delete(&key);
	af_record(AF_EPOLL_CREATED, 0, now, t->enter, 0, 0, -1, -1, ctx->ret, 0, -1);
	return 0;
}

/* The slot a new registration is about; born here when its create was not seen. */
static inline __attribute__((always_inline)) struct af_slot *af_slot_for_add(struct af_target *target, u32 tgid,
							    u64 addr)
{
	struct af_slot *slot = af_slot_find(tgid, addr);
	if (!slot) {
		slot = af_slot_new(tgid, addr);
		if (!slot)
			return 0;
		slot->state = AF_SLOT_LIVE;
		slot->gen = AF_HAVE_CREATE ? 0 : 1;
		slot->live_from = slot->gen;
		slot->flags = AF_HAVE_CREATE ? AF_S_INFERRED : 0;
	} else if (slot->state == AF_SLOT_FREE) {
		af_slot_reborn(target, slot, AF_HAVE_CREATE ? AF_S_ADD_FREED : 0);
	}
	return slot;
}

static inline __attribute__((always_inline)) void af_add_begun(void *ctx, struct af_target *target, struct af_thread *t, u32 tgid)
{
	struct af_fd_key fkey = {.tgid = tgid, .fd = t->fd};
	struct af_fd *f = fds.lookup(&fkey);
	bool closed = f && f->closed; /* what is registered under the number belongs to its life before */
	u64 addr = t->userdata & AF_UD_MASK;
	struct af_slot *slot = af_slot_for_add(target, tgid, addr);
	u32 gen = slot ? slot->gen : 0;
	if (slot && !slot->add.ts)
		slot->add.enter = t->enter; /* a delivery may become visible before ADD returns */
	struct af_reg *reg = af_reg_find(tgid, t->epfd, t->fd);
	if (closed || !af_reg_alive(reg)) {
		struct af_reg_key key = {.tgid = tgid, .epfd = t->epfd, .fd = t->fd};
		int zero = 0;
		struct af_reg *empty = empty_reg.lookup(&zero);
		if (!empty)
			return;
		regs.update(&key, empty);
		reg = regs.lookup(&key);
		if (!reg) {
			af_count(AF_C_REGS_FULL);
			return;
		}
		reg->userdata = t->userdata;
		reg->slot = addr;
		reg->tgid = tgid;
		reg->gen = gen;
		reg->epfd = t->epfd;
		reg->fd = t->fd;
		reg->events = t->events;
		af_at_set(&reg->add, t->enter, 0, t->ip, (u32)bpf_get_current_pid_tgid(), t->stack);
		reg->state = AF_REG_ADDING;
	}
	if (f && !closed) {
		f->epfd = t->epfd;
	} else {
		struct af_fd fresh = {.epfd = t->epfd};
		if (fds.update(&fkey, &fresh))
			af_count(AF_C_FDS_FULL);
	}
	af_record(AF_ADD_BEGUN, 0, t->enter, t->enter, t->userdata, gen, t->fd, t->epfd, 0, t->events, t->stack);
}

int af_enter_ctl(struct af_sys_enter *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	u32 tgid = af_tgid();
	struct af_epoll_event event = {};
	t->call = AF_CALL_CTL;
	t->enter = bpf_ktime_get_ns();
	t->epfd = (s32)ctx->args[0];
	t->op = (u32)ctx->args[1];
	t->fd = (s32)ctx->args[2];
	t->known = 0;
	t->userdata = 0;
	t->events = 0;
	t->stack = -1;
	t->ip = af_user_ip();
	if (t->op != AF_CTL_DEL && ctx->args[3]) {
		if (bpf_probe_read_user(&event, sizeof(event), (void *)ctx->args[3])) {
			af_count(AF_C_READ_FAULT);
			t->call = AF_CALL_NONE;
			return 0;
		}
		t->userdata = event.data;
		t->events = event.events;
	}
	if (t->op != AF_CTL_DEL && (AF_IS_RESERVED(t->userdata)))
		return 0;
	if (t->op == AF_CTL_ADD) {
		t->stack = af_stack_id(ctx);
		t->known = 1;
		af_add_begun(ctx, target, t, tgid);
		return 0;
	}
	if (t->op == AF_CTL_DEL) {
		struct af_reg *reg = af_reg_find(tgid, t->epfd, t->fd);
		if (af_reg_alive(reg)) {
			t->known = 1;
			reg->flags |= AF_R_ENDING;
			af_record(AF_DEL_BEGUN, 0, t->enter, t->enter, reg->userdata, reg->gen, t->fd, t->epfd, 0,
				  reg->events, t->stack);
		}
	}
	return 0;
}

static inline __attribute__((always_inline)) void af_added(void *ctx, struct af_target *target, struct af_thread *t, u32 tgid,
				       struct af_at *at)
{
	struct af_reg *reg = af_reg_find(tgid, t->epfd, t->fd);
	struct af_slot *slot = af_slot_find(tgid, t->userdata & AF_UD_MASK);
	if (!reg)
		return;
	if (reg->state == AF_REG_ADDING)
		reg->state = AF_REG_LIVE;
	reg->add.ts = at->ts;
	if (!slot)
		return;
	struct af_reg *other = af_reg_current(slot);
	bool twin = other && other != reg && other->gen >= slot->live_from;
	if (!twin && slot->old_fd >= 0 && slot->old_gen >= slot->live_from && slot->old_gen != slot->gen) {
		other = af_reg_old(slot, target);
		twin = other && other != reg;
	}
	if (twin) {
		struct af_trigger_args a = {.ts = at->ts, .enter = at->enter, .addr = t->userdata, .gen = slot->gen,
					    .fd = t->fd, .epfd = t->epfd, .ret = 0, .arg = t->events,
					    .stack = at->stack, .kind = AF_ADDED};
		af_suspect(AF_SUSPECT_ALIASED_SLOT, &a, t, slot, reg, other);
	}
	slot->fd = t->fd;
	slot->epfd = t->epfd;
	slot->add = *at;
	slot->flags &= ~(AF_S_CLOSED | AF_S_DELETED);
	u32 waiter = af_waiter(tgid, t->epfd);
	if (waiter) {
		slot->waiter = waiter;
		slot->flags |= AF_S_WAITER_KNOWN;
		if (waiter != at->tid)
			slot->flags |= AF_S_ADD_BY_OTHER;
	}
#if AF_OBJECT_OFFSET >= 0
	u64 object = 0;
	if (bpf_probe_read_user(&object, sizeof(object), (void *)(slot->addr + AF_OBJECT_OFFSET))) {
		af_count(AF_C_READ_FAULT);
	} else if (object) {
		struct af_slot_key okey = {.tgid = tgid, .addr = object};
		u64 addr = slot->addr;
		slot->object = object;
		if (objects.update(&okey, &addr))
			af_count(AF_C_OBJECTS_FULL);
	}
#endif
}

static inline __attribute__((always_inline)) void af_modified(struct af_thread *t, u32 tgid, struct af_at *at)
{
	struct af_reg *reg = af_reg_find(tgid, t->epfd, t->fd);
	if (!af_reg_alive(reg))
		return;
	reg->events = t->events;
	reg->mod = *at;
	reg->consecutive = 0;
	u64 addr = t->userdata & AF_UD_MASK;
	struct af_slot *slot = af_slot_find(tgid, addr);
	if (addr != reg->slot) {
		reg->slot = addr;
		reg->userdata = t->userdata;
		if (slot) {
			reg->gen = slot->gen;
			slot->fd = t->fd;
			slot->epfd = t->epfd;
		}
	}
	if (slot)
		slot->consecutive = 0;
}

static inline __attribute__((always_inline)) void af_removed(struct af_thread *t, u32 tgid, struct af_at *at)
{
	struct af_reg *reg = af_reg_find(tgid, t->epfd, t->fd);
	/* one that was begun later belongs to the number's next life: the DEL was through before it */
	if (!reg || reg->state == AF_REG_ENDED || reg->add.enter > at->enter)
		return;
	reg->state = AF_REG_ENDED;
	reg->flags = (reg->flags & ~AF_R_ENDING) | AF_R_BY_DEL;
	reg->end = *at;
	struct af_slot *slot = af_slot_find(tgid, reg->slot);
	if (!slot || slot->gen != reg->gen)
		return;
	slot->del = *at;
	slot->flags |= AF_S_DELETED;
	u32 waiter = af_waiter(tgid, t->epfd);
	if (waiter && waiter != at->tid)
		slot->flags |= AF_S_DEL_BY_OTHER;
}

int af_exit_ctl(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t || t->call != AF_CALL_CTL)
		return 0;
	t->call = AF_CALL_NONE;
	u32 tgid = af_tgid();
	s32 ret = ctx->ret;
	/* of a DEL and a MOD the instruction is known; the stack is worth its microsecond when they fail */
	if (ret < 0 && t->op != AF_CTL_ADD)
		t->stack = af_stack_id(ctx);
	struct af_at at;
	af_at_set(&at, t->enter, bpf_ktime_get_ns(), t->ip, (u32)bpf_get_current_pid_tgid(), t->stack);
	u16 kind = t->op == AF_CTL_ADD ? AF_ADDED : t->op == AF_CTL_MOD ? AF_MODIFIED : AF_REMOVED;
	struct af_reg *reg = af_reg_find(tgid, t->epfd, t->fd);
	u16 flags = t->op != AF_CTL_DEL && (AF_IS_RESERVED(t->userdata)) ? AF_F_NO_SLOT : 0;
	if (t->op == AF_CTL_DEL && reg)
		t->userdata = reg->userdata;
	else if (t->op == AF_CTL_DEL)
		flags |= AF_F_UNKNOWN;
	u32 gen = reg && !(flags & AF_F_NO_SLOT) ? reg->gen : 0;
	af_record(kind, flags, at.ts, at.enter, t->userdata, gen, t->fd, t->epfd, ret, t->events, t->stack);
	if (flags & AF_F_NO_SLOT)
		return 0;
	if (ret == 0) {
		if (t->op == AF_CTL_ADD)
			af_added(ctx, target, t, tgid, &at);
		else if (t->op == AF_CTL_MOD)
			af_modified(t, tgid, &at);
		else
			af_removed(t, tgid, &at);
		return 0;
	}
	if (t->op == AF_CTL_ADD) {
		if (reg && reg->state == AF_REG_ADDING)
			reg->state = AF_REG_ENDED;
		return 0;
	}
	if (reg && t->known)
		reg->flags &= ~AF_R_ENDING;
	if (ret == AF_EBADF || ret == AF_ENOENT) {
		struct af_slot *slot = reg ? af_slot_find(tgid, reg->slot) : 0;
		struct af_trigger_args a = {.ts = at.ts, .enter = at.enter, .addr = t->userdata, .gen = gen,
					    .fd = t->fd, .epfd = t->epfd, .ret = ret, .arg = t->events,
					    .stack = at.stack, .kind = kind};
		if (slot && slot->gen == gen && slot->state == AF_SLOT_LIVE && t->op == AF_CTL_DEL && !slot->del.ts)
			slot->del = at;
		af_suspect(AF_SUSPECT_FAILED_REMOVAL, &a, t, slot, reg, 0);
	}
	return 0;
}

int af_enter_wait(struct af_sys_enter *ctx)
{
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	u64 now = bpf_ktime_get_ns();
	s32 epfd = (s32)ctx->args[0];
	if (t->batch_open) {
		t->batch_open = 0;
		if (t->batch_slots)
			af_record(AF_BATCH_CLOSED, 0, now, now, 0, 0, -1, t->wait_epfd, 0, t->batch, -1);
	}
	if (t->wait_epfd != epfd || !t->waits) {
		t->waits = 1;
		struct af_fd_key key = {.tgid = af_tgid(), .fd = epfd};
		u32 tid = (u32)bpf_get_current_pid_tgid();
		u32 *known = waiters.lookup(&key);
		if (known && *known != tid)
			tid = AF_MANY_WAITERS;
		waiters.update(&key, &tid);
		/* who waits, for the reader of the stream: a batch opens with its first delivery */
		af_record(AF_WAITER_SEEN, 0, now, now, 0, 0, -1, epfd, 0, 0, -1);
	}
	t->call = AF_CALL_WAIT;
	t->wait_epfd = epfd;
	t->wait_enter = now;
	t->events_ptr = ctx->args[1];
	t->stale_slot = 0;
	t->batch_slots = 0;
	return 0;
}

/* Repeats are reported at 1, 2, 4, 8, …: the count in the message is exact whatever was left out. */
static inline __attribute__((always_inline)) bool af_worth_sending(u32 count, bool consecutive)
{
	return !consecutive || (count & (count - 1)) == 0;
}

/* One delivery for a known slot. Leaves what is suspicious in *what: memory, not a register, so that the
 * verifier's states of the loop around it stay equal. */
static inline __attribute__((always_inline)) void af_delivered(struct af_target *target, struct af_thread *t, u32 tid,
					   struct af_slot *slot, u32 events, u32 index, struct af_scratch *s)
{
	u64 now = t->wait_exit;
	bool same = slot->last_tid == tid && slot->last_batch == t->batch;
	bool consecutive = slot->last_tid == tid && slot->last_batch + 1 == t->batch;
	slot->consecutive = same ? slot->consecutive : consecutive ? slot->consecutive + 1 : 0;
	slot->batch_count = same ? slot->batch_count + 1 : 1;
	slot->undispatched = same ? slot->undispatched + 1 : 1;
	slot->last_batch = t->batch;
	slot->last_tid = tid;
	slot->last_delivery = now;
	slot->last_delivery_enter = t->wait_enter;
	s->what = 0;
	s->repeat = consecutive;
	if (slot->state == AF_SLOT_FREE) {
		slot->stale += 1;
		if (!t->stale_slot)
			t->stale_slot = slot->addr;
		if (af_worth_sending(slot->stale, consecutive))
			s->what = AF_SUSPECT_STALE_DELIVERY;
	} else {
		slot->deliveries += 1;
		if (!slot->first_delivery)
			slot->first_delivery = now;
		if (slot->flags & AF_S_CLOSED) {
			slot->after_close += 1;
			if (!slot->first_after_close)
				slot->first_after_close = now;
			slot->last_after_close = now;
		}
		if (slot->old_fd >= 0 && slot->old_gen < slot->live_from)
			s->what = AF_SUSPECT_RECYCLED_DELIVERY; /* if that registration is alive: af_report asks */
		else if (slot->consecutive >= AF_HOT_AFTER && af_worth_sending(slot->consecutive, true))
			s->what = AF_SUSPECT_HOT;
	}
	if (slot->consecutive >= AF_WATCH_READS_AFTER) {
		target->watch_reads = now + 1000000000ull;
		target->hot_fds |= slot->fd < 0 ? 0xffffffffu : 1u << (slot->fd & 31);
	}
	if (slot->consecutive >= AF_QUIET_AFTER) {
		af_count(AF_C_REPEATS);
		if (!af_worth_sending(slot->consecutive, true))
			return;
	}
	t->batch_slots += 1;
	u16 flags = (slot->flags & AF_S_INFERRED ? AF_F_INFERRED : 0) |
		    (slot->consecutive >= AF_QUIET_AFTER ? AF_F_REPEAT : 0) | (same ? AF_F_AGAIN : 0);
	af_record(AF_DELIVERED, flags, now, t->wait_enter, slot->addr, slot->gen, slot->consecutive, t->wait_epfd,
		  index, events, t->batch);
}

#define AF_PROG_DELIVER 0
#define AF_PROG_REPORT 1

/* Handle AF_CHUNK events of the wait from t->next on; then report what is suspicious, or go on. */
static inline __attribute__((always_inline)) void af_deliver(void *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return;
	struct af_thread *t = af_thread_now();
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!t || !s)
		return;
	u32 tgid = af_tgid(), tid = (u32)bpf_get_current_pid_tgid();
	s->first = t->next;
	s->count = t->returned - s->first;
	s->pending_count = 0;
	if (s->count > AF_CHUNK)
		s->count = AF_CHUNK;
	/* the mask is for the verifier: AF_CHUNK events are 384 bytes, the buffer holds 516 */
	u64 bytes = (s->count * sizeof(struct af_epoll_event)) & 511;
	if (!bytes)
		return;
	if (bpf_probe_read_user(s->events, bytes, (void *)(t->events_ptr + s->first * sizeof(struct af_epoll_event)))) {
		af_count(AF_C_READ_FAULT);
		return;
	}
	for (u32 i = 0; i < AF_CHUNK; i++) {
		if (i >= s->count)
			break;
		u64 userdata = s->events[i].data;
		if (AF_IS_RESERVED(userdata))
			continue;
		af_count(AF_C_DELIVERIES);
		struct af_slot *slot = af_slot_find(tgid, userdata & AF_UD_MASK);
		if (!slot) {
			af_count(AF_C_UNKNOWN_SLOT);
			t->batch_slots += 1;
			af_record(AF_DELIVERED, AF_F_UNKNOWN, t->wait_exit, t->wait_enter, userdata, 0, -1,
				  t->wait_epfd, s->first + i, s->events[i].events, t->batch);
			continue;
		}
		af_delivered(target, t, tid, slot, s->events[i].events, s->first + i, s);
		if (!s->what)
			continue;
		u32 n = s->pending_count;
		if (n >= AF_CHUNK)
			continue;
		s->pending_count = n + 1;
		s->pending[n].addr = slot->addr;
		s->pending[n].what = s->what;
		s->pending[n].events = s->events[i].events;
		s->pending[n].index = s->first + i;
		s->pending[n].repeat = s->repeat;
	}
	t->next = s->first + s->count;
	if (s->pending_count) {
		s->reported = 0;
		prog.call(ctx, AF_PROG_REPORT);
		af_count(AF_C_TAILCALL_FAILED);
	} else if (t->next < t->returned) {
		prog.call(ctx, AF_PROG_DELIVER);
		af_count(AF_C_TAILCALL_FAILED);
	}
}

static inline __attribute__((always_inline)) void af_report_one(void *ctx, struct af_target *target, struct af_thread *t, u32 tgid,
					     struct af_pending *p)
{
	struct af_slot *slot = af_slot_find(tgid, p->addr);
	if (!slot)
		return;
	struct af_reg *reg = af_reg_old(slot, target);
	struct af_reg *current = af_reg_current(slot);
	struct af_reg *other = 0;
	if (p->what == AF_SUSPECT_RECYCLED_DELIVERY) {
		if (!reg)
			return;
		slot->recycled += 1;
		if (!af_worth_sending(slot->recycled, p->repeat))
			return;
		slot->recycled_reported = slot->recycled;
		other = current;
	} else {
		if (!reg || p->what == AF_SUSPECT_HOT)
			reg = current;
		if (!reg && slot->fd >= 0)
			reg = af_reg_find(tgid, slot->epfd, slot->fd);
		if (p->what == AF_SUSPECT_HOT && reg && (reg->events & (AF_EPOLLET | AF_EPOLLONESHOT)))
			return;
		slot->stale_reported = slot->stale;
	}
	struct af_trigger_args a = {.ts = t->wait_exit, .enter = t->wait_enter, .addr = slot->addr, .gen = slot->gen,
				    .fd = slot->consecutive, .epfd = t->wait_epfd, .ret = p->index,
				    .arg = p->events, .stack = af_stack_id(ctx), .kind = AF_DELIVERED};
	if (slot->consecutive >= AF_QUIET_AFTER && !af_worth_sending(slot->consecutive, true)) {
		/* what is sent is recorded too, whatever the run it is part of */
		t->batch_slots += 1;
		af_record(AF_DELIVERED, p->repeat ? AF_F_REPEAT : AF_F_REPEAT | AF_F_AGAIN, t->wait_exit, t->wait_enter, slot->addr, slot->gen,
			  slot->consecutive, t->wait_epfd, p->index, p->events, t->batch);
	}
	af_suspect(p->what, &a, t, slot, reg, other);
}

/* Send what af_deliver found, AF_SUSPECTS at a time, then go on with the next chunk. */
int af_report(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!t || !s)
		return 0;
	u32 tgid = af_tgid();
	for (u32 i = 0; i < AF_SUSPECTS; i++) {
		if (i >= s->pending_count)
			break;
		af_report_one(ctx, target, t, tgid, &s->pending[i]);
	}
	if (s->pending_count > AF_SUSPECTS)
		af_count(AF_C_SUSPECTS_DROPPED);
	if (t->next < t->returned) {
		prog.call(ctx, AF_PROG_DELIVER);
		af_count(AF_C_TAILCALL_FAILED);
	}
	return 0;
}

/* The thread was waiting when the target was armed: the arguments are still in its registers (x86-64 keeps
 * them over a system call), and all that is known of the entry is that it was before. */
static inline __attribute__((always_inline)) void af_wait_entered_unseen(struct af_target *target, struct af_thread *t)
{
	u64 epfd = 0;
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
	bpf_probe_read_kernel(&epfd, 8, (void *)((u64)regs + __builtin_offsetof(struct pt_regs, di)));
	bpf_probe_read_kernel(&t->events_ptr, 8, (void *)((u64)regs + __builtin_offsetof(struct pt_regs, si)));
	t->wait_epfd = (s32)epfd;
	t->wait_enter = target->armed;
	t->stale_slot = 0;
}

int af_exit_wait(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	if (t->call != AF_CALL_WAIT)
		af_wait_entered_unseen(target, t);
	t->call = AF_CALL_NONE;
	if (ctx->ret <= 0)
		return 0;
	u32 count = ctx->ret;
	if (count > AF_MAX_EVENTS) {
		af_count(AF_C_EVENTS_TRUNCATED);
		count = AF_MAX_EVENTS;
	}
	t->wait_exit = bpf_ktime_get_ns();
	t->batch += 1;
	t->batch_open = 1;
	t->batch_slots = 0;
	t->returned = count;
	t->next = 0;
	af_deliver(ctx);
	return 0;
}

int af_wait_more(struct af_sys_exit *ctx)
{
	af_deliver(ctx);
	return 0;
}
