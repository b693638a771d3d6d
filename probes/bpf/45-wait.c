/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The epoll_wait family: batches, and what is delivered in them.
 */
#define AF_PROG_DELIVER 0
#define AF_PROG_REPORT 1
#define AF_PROG_SETTLE 2
#define AF_PROG_PROGRESS 3

#define AF_EPOLLERR 8u
#define AF_EPOLLHUP 16u

/* The batches that are over now that the thread waits on `ep` with its stack at `sp`: those whose array lay in a frame
 * that is gone, and the one of this very loop. A wait deeper on the stack is nested in the others. One that is not, on
 * another instance: a loop may serve both in turn, or a handler of the first wait for the second. */
AF_FN void af_batches_over(struct af_thread *t, u64 ep, u64 sp, u64 now)
{
	u32 keep = 0;
	for (u32 i = 0; i < AF_BATCHES; i++) {
		if (i >= t->depth)
			break;
		struct af_batch *b = &t->open[i];
		bool gone = b->events >= b->sp && b->events < sp;
		if (gone || (b->ep == ep && b->sp <= sp)) {
			if (b->number == t->batch && t->batch_slots)
				af_record(AF_BATCH_CLOSED, 0, now, now, 0, 0, -1, b->epfd, 0, b->number, -1);
			continue;
		}
		if (b->sp <= sp)
			b->nested = 1;
		if (keep != i)
			t->open[keep & (AF_BATCHES - 1)] = *b;
		keep++;
	}
	t->depth = keep;
}

AF_FN void af_bad_close_sent(struct af_target *target, struct af_thread *t, struct af_bad_close *bad, struct af_scratch *s);

/* Is the slot registered only where this thread alone waits, and not where it waits now? Nothing can be delivered before
 * it waits there. */
AF_FN bool af_waits_elsewhere(struct af_slot *slot, struct af_thread *t, u32 tid, struct af_scratch *s)
{
	AF_KEPT(s->elsewhere) = 0;
	AF_LOOP
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		u64 ep = slot->links[i].ep;
		if (!ep)
			continue;
		u32 *waiter = waiters.lookup(&ep); /* null: whoever waited there has ended */
		if (ep == t->wait.ep || (waiter && *waiter != tid)) {
			AF_KEPT(s->elsewhere) = 0;
			break;
		}
		AF_KEPT(s->elsewhere) = 1;
	}
	return AF_KEPT(s->elsewhere);
}

/* Judge what this thread put off; the next program of the chain goes on. */
AF_FN void af_settle_pending(void *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return;
	struct af_thread *t = af_thread_now();
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!t || !s)
		return;
	if (t->missed_count)
		af_missed_sent(target, t, s);
	if (t->bad.at)
		af_bad_close_sent(target, t, &t->bad, s);
	u64 now = bpf_ktime_get_ns();
	/* The file of a close may hang on this very wait until it is back in user mode (epi_fget; fput leaves the rest to
	 * task work): whether a registration outlived its close is asked at the next wait's entry. */
	u64 judged = t->call == AF_CALL_WAIT ? AF_S_PUT_OFF : AF_S_PENDING;
	AF_LOOP
	for (u32 i = 0; i < AF_SETTLE_AT_ONCE; i++) {
		if (t->pending_first == t->pending_until)
			break;
		struct af_pending_key key = {.id = bpf_get_current_pid_tgid(),
					     .index = t->pending_first & (AF_PENDING - 1)};
		t->pending_first += 1;
		struct af_pending_slot *p = pending.lookup(&key);
		if (!p)
			continue;
		u64 addr = p->addr;
		AF_KEPT(s->judge) = p->judge;
		u32 gen = p->gen, epoch = p->epoch;
		pending.delete(&key);
		struct af_slot *slot = af_slot_of(af_tgid(), epoch, addr);
		if (!slot || slot->gen != gen)
			continue;
		/* who ends may leave the closing to who joins it: what was freed just now is judged from outside */
		u64 begun = slot->destroy.ts > slot->close.ts ? slot->destroy.ts : slot->close.ts;
		if (t->exiting && now - begun < AF_LEFT_NS)
			AF_KEPT(s->judge) &= ~(AF_S_PENDING | AF_S_CLOSE_PENDING);
		if (t->call == AF_CALL_WAIT && !t->exiting && !slot->adder &&
		    af_waits_elsewhere(slot, t, (u32)key.id, s)) {
			u64 later = AF_KEPT(s->judge) & ~AF_S_TWICE_PENDING;
			if (later)
				af_put_off(t, slot, later);
			AF_KEPT(s->judge) &= AF_S_TWICE_PENDING;
		}
		if (AF_KEPT(s->judge) & slot->flags & ~judged)
			af_put_off(t, slot, AF_KEPT(s->judge) & ~judged);
		AF_KEPT(s->judge) &= judged;
		af_settle_only(slot, s, slot->adder == (u32)key.id);
	}
	if (t->missed_count || t->pending_first != t->pending_until)
		prog.call(ctx, AF_PROG_SETTLE);
	if (t->exiting) {
		u64 id = bpf_get_current_pid_tgid();
		threads.delete(&id);
	}
}

int af_settle_more(struct af_sys_enter *ctx)
{
	af_settle_pending(ctx);
	return 0;
}

int af_enter_wait(struct af_sys_enter *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	u64 now = bpf_ktime_get_ns();
	s32 epfd = (s32)ctx->args[0];
	u64 ep = af_eventpoll(epfd), sp = AF_USER(sp);
	af_batches_over(t, ep, sp, now);
	if (t->wait.ep != ep || !t->waits) {
		u32 tid = (u32)bpf_get_current_pid_tgid();
		u32 *known = waiters.lookup(&ep);
		if (known && *known != tid)
			tid = AF_MANY_WAITERS;
		t->waits = 1;
		waiters.update(&ep, &tid);
		/* who waits, for the reader of the stream: a batch opens with its first delivery */
		af_record(AF_WAITER_SEEN, 0, now, now, 0, 0, -1, epfd, 0, 0, -1);
	}
	t->call = AF_CALL_WAIT;
	t->wait.epfd = epfd;
	t->wait.ep = ep;
	t->wait.sp = sp;
	t->wait.enter = now;
	t->wait.events = ctx->args[1];
	t->wait.count = 0;
	t->wait.nested = 0;
	t->stale_slot = 0;
	t->batch_slots = 0;
	t->pending_until = t->pending_next;
	if (t->missed_count || t->bad.at || t->pending_first != t->pending_until)
		prog.call(ctx, AF_PROG_SETTLE);
	return 0;
}

/* Repeats are reported at 1, 2, 4, 8, …: the count in the message is exact whatever was left out. */
AF_FN bool af_worth_sending(u32 count, bool consecutive)
{
	return !consecutive || (count & (count - 1)) == 0;
}

#define AF_NOTICE_SPIN 100   /* progress should be watched */
#define AF_EPOLLOUT 4u

/* Of a TCP connection the kernel tells whether what was delivered is read: then nobody needs to watch the calls. Looked
 * at twice in AF_SUSPECT_AFTER deliveries. Fewer segments than AF_WASTED allows: something spins beside the reading. */
int af_taken(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	struct af_slot *slot = s ? slots.lookup(&s->key) : 0;
	if (!slot)
		return 0;
	u32 half = AF_SUSPECT_AFTER / 2, taken = 0, arrived = 0, links = 0;
	u64 file = 0, idle = slot->idle + 1;
	AF_LOOP
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		struct af_link *link = &slot->links[i];
		if (!link->ep)
			continue;
		links += 1;
		file = link->file ? link->file : af_file(link->fd); /* one from fdinfo has its number only */
	}
	if (links != 1 || !af_tcp(file, &taken, &arrived))
		return 0;
	bool moved = !(idle & half) && taken != slot->taken && arrived - slot->arrived >= half / AF_WASTED;
	slot->taken = taken;
	slot->arrived = arrived;
	return moved;
}

AF_FN bool af_was_taken(struct af_slot *slot, u32 events, u64 idle, struct af_scratch *s)
{
	if (!idle || (idle & (AF_SUSPECT_AFTER / 2 - 1)) || (events & AF_EPOLLOUT))
		return false;
	af_call_about(s, slot);
	return AF_CALL(9, af_taken, s) != 0;
}

/* Deliveries without progress on the file: a spin, whatever else rotates through the batches. */
AF_FN void af_idle(struct af_target *target, struct af_slot *slot, u32 events, struct af_scratch *s, u64 now)
{
	int zero = 0;
	struct af_control *c = control.lookup(&zero);
	u64 since = c ? c->watch_since : 0, quiet = c ? c->spin_quiet : 0;
	/* a HUP does not go away; an error does when it is taken (SO_ERROR, MSG_ERRQUEUE) */
	AF_KEPT(s->hopeless) = ((events & AF_EPOLLHUP) && !(events & ~(AF_EPOLLERR | AF_EPOLLHUP))) ||
				((slot->flags & AF_S_CLOSED) && !(slot->flags & AF_S_DELETED));
	if (slot->flags & AF_S_EDGE)
		return;
	if (!slot->idle || (!AF_KEPT(s->hopeless) && (slot->idle_since < since || af_was_taken(slot, events, slot->idle + 1, s)))) {
		slot->idle = 0;
		slot->progressed = 0;
		slot->idle_reported = 0;
		slot->idle_since = now;
	}
	u64 idle = slot->idle + 1;
	slot->idle = idle;
	if (AF_KEPT(s->hopeless) ? idle >= AF_HOPELESS_AFTER
		     : since && idle >= AF_HOT_AFTER && now - slot->idle_since >= AF_HOT_NS) {
		if (!slot->idle_reported || idle >= 2 * slot->idle_reported) {
			slot->idle_reported = idle;
			s->what = AF_SUSPECT_HOT;
			s->flags = AF_KEPT(s->hopeless) ? AF_F_HOPELESS : 0;
		}
	} else if (!since && !AF_KEPT(s->hopeless) && (idle & (AF_SUSPECT_AFTER - 1)) == 0 &&
		   now - slot->idle_since >= AF_SUSPECT_NS && now >= quiet && now - target->spin_said > 1000000000ull) {
		target->spin_said = now;
		s->what = AF_NOTICE_SPIN;
	}
}

/* One delivery for a known slot. Leaves what is suspicious in s->what: memory, not a register, so that the
 * verifier's states of the loop around it stay equal. */
AF_FN void af_delivered(struct af_target *target, struct af_thread *t, u32 tid, struct af_slot *slot, u32 events,
			u32 index, struct af_scratch *s)
{
	u64 now = t->wait.exit;
	AF_KEPT(s->same) = slot->last_tid == tid && slot->last_batch == t->batch;
	AF_KEPT(s->repeat) = slot->last_tid == tid && slot->last_batch + 1 == t->batch;
	/* delivered again by a wait nested in the batch that it waits in */
	if (!AF_KEPT(s->same) && slot->last_tid != tid)
		slot->held_batch = 0;
	else if (!AF_KEPT(s->same) && slot->undispatched && t->depth > 1 && af_open_batch(t, slot->last_batch)) {
		slot->held_batch = slot->last_batch;
		slot->held_index = slot->last_index;
	}
#if AF_HAVE_DISPATCH
	else if (!AF_KEPT(s->same) && slot->undispatched && slot->state == AF_SLOT_LIVE && af_holds_object(slot))
		__sync_fetch_and_or(&target->unanswered, AF_KIND(slot->last_events));
#endif
	slot->consecutive = AF_KEPT(s->same) ? slot->consecutive : AF_KEPT(s->repeat) ? slot->consecutive + 1 : 0;
	slot->batch_count = AF_KEPT(s->same) ? slot->batch_count + 1 : 1;
	slot->undispatched = AF_KEPT(s->same) ? slot->undispatched + 1 : 1;
	if (!AF_KEPT(s->same))
		slot->doubtful = 0;
	slot->last_events = events;
	slot->last_batch = t->batch;
	slot->last_index = index;
	slot->last_tid = tid;
	slot->last_delivery = now;
	slot->last_delivery_enter = t->wait.enter;
	if (!(events & AF_EPOLLHUP))
		slot->hup_since = 0;
	else if (!slot->hup_since)
		slot->hup_since = now;
	s->what = 0;
	s->flags = 0;
	af_idle(target, slot, events, s, now);
	if (slot->state == AF_SLOT_FREE && !slot->adder) { /* of one that a create may be giving out nobody can tell */
		slot->stale += 1;
		if (!t->stale_slot)
			t->stale_slot = slot->addr;
		if (af_worth_sending(slot->stale, AF_KEPT(s->repeat)))
			s->what = AF_SUSPECT_STALE_DELIVERY;
	} else if (slot->state != AF_SLOT_FREE) {
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
			s->what = AF_SUSPECT_RECYCLED_DELIVERY; /* if that registration exists: af_report asks */
	}
	/* a delivery is the latest moment to judge what was put off: the last program of the chain does */
	if ((slot->flags & (AF_S_PENDING | AF_S_CLOSE_PENDING)) && !slot->adder) {
		af_put_off(t, slot, AF_S_PENDING | AF_S_CLOSE_PENDING);
		t->settle = 1;
	}
	if (slot->consecutive >= AF_QUIET_AFTER || slot->idle_reported) {
		af_count(AF_C_REPEATS);
		if (!af_worth_sending(slot->consecutive >= AF_QUIET_AFTER ? slot->consecutive : (u32)slot->idle, true))
			return;
	}
	t->batch_slots += 1;
	u16 flags = (slot->flags & AF_S_INFERRED ? AF_F_INFERRED : 0) |
		    (slot->consecutive >= AF_QUIET_AFTER ? AF_F_REPEAT : 0) | (AF_KEPT(s->same) ? AF_F_AGAIN : 0);
	af_record(AF_DELIVERED, flags, now, t->wait.enter, slot->addr, slot->gen, slot->consecutive, t->wait.epfd,
		  index, events, t->batch);
}

/* The next chunk; after the last one, what was put off. */
AF_FN void af_deliver_on(void *ctx, struct af_thread *t)
{
	if (t->next < t->returned) {
		prog.call(ctx, AF_PROG_DELIVER);
		af_count(AF_C_TAILCALL_FAILED);
	} else if (t->settle) {
		t->settle = 0;
		t->pending_until = t->pending_next;
		prog.call(ctx, AF_PROG_SETTLE);
	}
}

/* Handle AF_CHUNK events of the wait from t->next on; then report what is suspicious, or go on. */
AF_FN void af_deliver(void *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return;
	struct af_thread *t = af_thread_now();
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!t || !s)
		return;
	u32 tid = (u32)bpf_get_current_pid_tgid();
	s->first = t->next;
	s->count = t->returned - s->first;
	s->noticed_count = 0;
	if (s->count > AF_CHUNK)
		s->count = AF_CHUNK;
	/* the mask is for the verifier: AF_CHUNK events are 384 bytes, the buffer holds 516 */
	u64 bytes = (s->count * sizeof(struct af_epoll_event)) & 511;
	if (!bytes)
		return;
	if (bpf_probe_read_user(s->events, bytes, (void *)(t->wait.events + s->first * sizeof(struct af_epoll_event)))) {
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
		struct af_slot *slot = af_slot_find(target, af_slot_behind(target, userdata, false));
		if (!slot) {
			af_count(AF_C_UNKNOWN_SLOT);
			if (!(target->flags & AF_T_LATE))
				af_count(AF_C_AUDIT_UNSEEN);
			t->batch_slots += 1;
			af_record(AF_DELIVERED, AF_F_UNKNOWN, t->wait.exit, t->wait.enter, userdata, 0, -1,
				  t->wait.epfd, s->first + i, s->events[i].events, t->batch);
			continue;
		}
		af_delivered(target, t, tid, slot, s->events[i].events, s->first + i, s);
		if (!s->what)
			continue;
		u32 n = s->noticed_count;
		if (n >= AF_CHUNK)
			continue;
		s->noticed_count = n + 1;
		s->noticed[n].addr = slot->addr;
		s->noticed[n].what = s->what;
		s->noticed[n].flags = s->flags;
		s->noticed[n].events = s->events[i].events;
		s->noticed[n].index = s->first + i;
		s->noticed[n].repeat = s->repeat;
	}
	t->next = s->first + s->count;
	if (s->noticed_count) {
		prog.call(ctx, AF_PROG_REPORT);
		af_count(AF_C_TAILCALL_FAILED);
	} else {
		af_deliver_on(ctx, t);
	}
}

AF_FN void af_lifecycle_out(u16 kind, u32 tgid, u64 addr, u32 arg, struct af_path_key *path);

/* s->at: which. */
int af_report_one(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	struct af_target *target = s ? af_target_now() : 0;
	u64 id = bpf_get_current_pid_tgid();
	struct af_thread *t = target ? threads.lookup(&id) : 0;
	if (!t)
		return 0;
	struct af_noticed *p = &s->noticed[s->at & (AF_CHUNK - 1)];
	struct af_slot *slot = af_slot_find(target, p->addr);
	if (!slot)
		return 0;
	if (p->what == AF_NOTICE_SPIN) {
		af_lifecycle_out(AF_SPIN_SUSPECTED, slot->tgid, slot->addr, (u32)slot->idle, 0);
		return 0;
	}
#define af_recycled (AF_KEPT(p->what) == AF_SUSPECT_RECYCLED_DELIVERY)
	/* of a stale delivery, the registration that exists says more than one that is over */
	u32 until = af_recycled ? slot->live_from : slot->gen + 1;
	bool exists = af_existing(slot, 0, until, AF_WHENEVER, false, s);
	if (!exists && af_recycled) {
		slot->old_fd = -1; /* it is over by now */
		return 0;
	}
	if (!exists)
		af_remembered(slot, s);
	AF_KEPT(s->other.state) = AF_REG_NONE;
	if (af_recycled)
		af_remembered_in(slot, &s->other);
	if (af_recycled) {
		slot->recycled += 1;
		if (!af_worth_sending(slot->recycled, p->repeat))
			return 0;
		slot->recycled_reported = slot->recycled;
	} else {
		slot->stale_reported = slot->stale;
	}
	struct af_trigger_args *a = &s->args;
	__builtin_memset(a, 0, sizeof(*a));
	a->addr = slot->addr;
	a->gen = slot->gen;
	a->ts = t->wait.exit;
	a->enter = t->wait.enter;
	a->fd = slot->consecutive;
	a->epfd = t->wait.epfd;
	a->ret = p->index;
	a->arg = p->events;
	a->stack = s->stack_id;
	a->kind = AF_DELIVERED;
	a->flags = p->flags;
	if (slot->consecutive >= AF_QUIET_AFTER && !af_worth_sending(slot->consecutive, true)) {
		/* what is sent is recorded too, whatever the run it is part of */
		t->batch_slots += 1;
		af_record(AF_DELIVERED, p->repeat ? AF_F_REPEAT : AF_F_REPEAT | AF_F_AGAIN, t->wait.exit, t->wait.enter,
			  slot->addr, slot->gen, slot->consecutive, t->wait.epfd, p->index, p->events, t->batch);
	}
	af_suspect(p->what, a, slot->tgid, target, t, slot, &s->reg, &s->other);
#undef af_recycled
	return 0;
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
	s->stack_id = af_stack_id(ctx);
	AF_LOOP
	for (u32 i = 0; i < AF_SUSPECTS; i++) {
		if (i >= s->noticed_count)
			break;
		s->at = i;
		AF_CALL(6, af_report_one, s);
	}
	if (s->noticed_count > AF_SUSPECTS)
		af_count(AF_C_SUSPECTS_DROPPED);
	af_deliver_on(ctx, t);
	return 0;
}

/* The thread was waiting when the target was armed: the arguments are still in its registers (x86-64 keeps
 * them over a system call), and all that is known of the entry is that it was before. */
AF_FN void af_wait_entered_unseen(struct af_target *target, struct af_thread *t)
{
	t->wait.epfd = (s32)AF_USER(di);
	t->wait.ep = af_eventpoll(t->wait.epfd);
	t->wait.events = AF_USER(si);
	t->wait.sp = AF_USER(sp);
	t->wait.enter = target->armed;
	t->wait.nested = 0;
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
	if (t->pending_first != t->pending_until)
		t->settle = 1; /* more than one chain of programs can judge: the rest before the thread goes on */
	if (ctx->ret <= 0) {
		if (t->settle) {
			t->settle = 0;
			prog.call(ctx, AF_PROG_SETTLE);
		}
		return 0;
	}
	u32 count = ctx->ret;
	if (count > AF_MAX_EVENTS) {
		af_count(AF_C_EVENTS_TRUNCATED);
		count = AF_MAX_EVENTS;
	}
	t->wait.exit = bpf_ktime_get_ns();
	t->batch += 1;
	t->batch_slots = 0;
	t->returned = count;
	t->next = 0;
	t->wait.count = count;
	t->wait.number = t->batch;
	if (t->depth >= AF_BATCHES) {
		for (u32 i = 0; i + 1 < AF_BATCHES; i++)
			t->open[i] = t->open[i + 1];
		t->depth = AF_BATCHES - 1;
		af_count(AF_C_BATCHES_FULL);
	}
	t->open[t->depth & (AF_BATCHES - 1)] = t->wait;
	t->depth += 1;
	prog.call(ctx, AF_PROG_DELIVER);
	af_count(AF_C_TAILCALL_FAILED);
	return 0;
}

int af_wait_more(struct af_sys_exit *ctx)
{
	af_deliver(ctx);
	return 0;
}
