/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * epoll_create and epoll_ctl.
 */
int af_exit_create(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target || ctx->ret < 0)
		return 0;
	u64 now = bpf_ktime_get_ns();
	u64 ep = af_eventpoll((s32)ctx->ret);
	waiters.delete(&ep); /* of an instance before it at this address */
	af_record(AF_EPOLL_CREATED, 0, now, now, 0, 0, -1, -1, (s32)ctx->ret, 0, -1);
	return 0;
}

/* The slot that a new registration is about. One that is free stays free where every create is probed: either a
 * create under way registers what it is about to give out, or a freed slot is registered. */
AF_FN struct af_slot *af_slot_for_add(struct af_target *target, u64 addr, struct af_scratch *s)
{
	struct af_slot *slot = af_slot_find(target, addr);
	if (!slot) {
		slot = af_slot_inferred(target, addr);
		if (slot)
			slot->adder = (u32)bpf_get_current_pid_tgid(); /* a create under way may register it */
		return slot;
	}
	if ((slot->flags & AF_S_UNBORN) && !slot->adder) {
		/* another object's before, and now perhaps what a create is about to give out */
		for (u32 i = 0; i < AF_SLOT_LINKS; i++)
			slot->links[i].ep = 0;
		slot->adder = (u32)bpf_get_current_pid_tgid();
	}
	if (slot->state == AF_SLOT_FREE) {
		if (AF_CREATE_COMPLETE) {
			slot->adder = (u32)bpf_get_current_pid_tgid();
			af_flag(slot, AF_S_ADD_FREED);
		} else {
			af_slot_reborn(target, slot, AF_HAVE_CREATE ? AF_S_ADD_FREED : 0, s);
		}
	}
	return slot;
}

AF_FN void af_edge(struct af_slot *slot, u32 events)
{
	bool several = false;
	if (!(events & AF_EPOLLET)) {
		af_unflag(slot, AF_S_EDGE);
		return;
	}
	for (u32 i = 0, links = 0; i < AF_SLOT_LINKS; i++) {
		links += slot->links[i].ep && slot->links[i].file; /* one from fdinfo may be the same */
		several |= links > 1;
	}
	if (!several) /* another one of the slot's may be level-triggered */
		af_flag(slot, AF_S_EDGE);
}

AF_FN void af_add_begun(struct af_target *target, struct af_thread *t, struct af_scratch *s)
{
	struct af_reg *before = af_note(t->ep, t->file, t->fd);
	if (t->exists == AF_EXISTS || !t->file || !t->ep)
		return; /* it will fail */
	if (t->exists == AF_CANNOT_TELL && before && !(before->flags & (AF_R_BY_CLOSE | AF_R_BY_DEL)))
		return;
	u64 addr = af_slot_behind(target, t->userdata, true);
	struct af_slot *slot = af_slot_for_add(target, addr, s);
	u32 gen = slot ? slot->gen : 0;
	struct af_reg *note =
		af_note_new(target, t->ep, t->file, t->fd, t->epfd, t->userdata, addr, gen, t->events, t->enter);
	if (!note)
		return;
	af_at_set(&note->add, t->enter, 0, t->ip, (u32)bpf_get_current_pid_tgid(), t->stack);
	t->begun = 1;
	if (slot) {
		if (!slot->add.ts)
			slot->add.enter = t->enter; /* a delivery may become visible before ADD returns */
		af_link_set(slot, note);
		af_edge(slot, t->events);
	}
	af_record(AF_ADD_BEGUN, 0, t->enter, t->enter, t->userdata, gen, t->fd, t->epfd, 0, t->events, t->stack);
}

/* MOD first, ADD where there is nothing to modify; DEL first, whatever the number was before: idioms. */
AF_FN void af_missed_explained(struct af_target *target, struct af_thread *t)
{
	u64 addr = af_slot_behind(target, t->userdata, false);
	for (u32 i = 0; i < AF_MISSED; i++) {
		struct af_missed *m = &t->missed[i];
		if (m->at && m->fd == t->fd && m->epfd == t->epfd && (m->op == AF_CTL_MOD || m->slot == addr))
			m->at = 0;
	}
	for (u32 i = 0; i < AF_MISSED; i++)
		if (t->missed_count && !t->missed[(t->missed_count - 1) & (AF_MISSED - 1)].at)
			t->missed_count -= 1;
}

int af_enter_ctl(struct af_sys_enter *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!t || !s)
		return 0;
	struct af_epoll_event event = {};
	t->call = AF_CALL_CTL;
	t->enter = bpf_ktime_get_ns();
	t->epfd = (s32)ctx->args[0];
	t->op = (u32)ctx->args[1];
	t->fd = (s32)ctx->args[2];
	t->begun = 0;
	t->userdata = 0;
	t->events = 0;
	t->stack = -1;
	t->ip = AF_USER(ip);
	if (t->op != AF_CTL_DEL && ctx->args[3]) {
		if (bpf_probe_read_user(&event, sizeof(event), (void *)ctx->args[3])) {
			af_count(AF_C_READ_FAULT);
			t->call = AF_CALL_NONE;
			return 0;
		}
		t->userdata = event.data;
		t->events = event.events;
	}
	t->file = af_file(t->fd);
	t->ep = af_eventpoll(t->epfd);
	if (t->missed_count && t->op == AF_CTL_ADD)
		af_missed_explained(target, t);
	if (t->op != AF_CTL_DEL && (AF_IS_RESERVED(t->userdata)))
		return 0;
	struct af_epoll_event made = {};
	u64 item = af_find_item(t->ep, t->file, t->fd, &made);
	t->exists = !item ? AF_GONE : item == AF_TOO_MANY ? AF_CANNOT_TELL : AF_EXISTS;
	if (t->op == AF_CTL_ADD) {
		t->stack = af_stack_id(ctx);
		af_add_begun(target, t, s);
		return 0;
	}
	if (t->exists == AF_GONE)
		return 0;
	struct af_reg *note = af_note(t->ep, t->file, t->fd);
	if (!note && t->exists == AF_EXISTS)
		note = af_note_inferred(target, t->ep, t->file, t->fd, t->epfd, made.data, made.events, t->enter,
					item);
	if (note && t->op == AF_CTL_DEL)
		af_record(AF_DEL_BEGUN, 0, t->enter, t->enter, note->userdata, note->gen, t->fd, t->epfd, 0,
			  note->events, t->stack);
	return 0;
}

/* The note of an ADD was given up meanwhile (its number was closed, say). That the thread may be in the middle of a
 * create ends at its next wait all the same, and at once where the ADD failed. */
AF_FN void af_add_forgotten(struct af_target *target, struct af_thread *t, bool failed)
{
	struct af_slot *slot = t->begun ? af_slot_find(target, af_slot_behind(target, t->userdata, false)) : 0;
	if (!slot || slot->adder != (u32)bpf_get_current_pid_tgid())
		return;
	if (failed)
		slot->adder = 0;
	else
		af_put_off(t, slot, 0);
}

AF_FN void af_added(struct af_target *target, struct af_thread *t, struct af_at *at, struct af_scratch *s)
{
	af_count(AF_C_ADDS);
	if (t->exists == AF_EXISTS) {
		/* unless whoever had it was quicker to remove it */
		struct af_reg *last = af_number(target, t->fd);
		if (!last || last->end.ts < t->enter)
			af_count(AF_C_AUDIT_ADD);
	}
	struct af_reg *note = af_note(t->ep, t->begun ? t->file : af_file(t->fd), t->fd);
	if (note && note->add.enter < t->enter && !t->begun) {
		/* it was to fail as things were when it began, and did not: what was registered under this identity is over */
		af_note_ended(note, af_note_slot(note));
		return;
	}
	if (!note || note->add.enter != t->enter) {
		af_add_forgotten(target, t, false);
		return;
	}
	if (note->userdata != t->userdata)
		af_add_forgotten(target, t, false); /* moved to another slot already */
	struct af_epoll_event made = {};
	note->add.ts = at->ts;
	note->item = af_find_item(t->ep, t->file, t->fd, &made);
	note->state = note->item ? AF_REG_LIVE : AF_REG_ENDED; /* removed before its ADD returned */
	if (!AF_ASK || !note->item)
		af_number_keep(note);
	struct af_slot *slot = af_note_slot(note);
	if (!slot)
		return;
	if (slot->flags & AF_S_CREATE_SEEN)
		af_count(AF_C_ADDS_CREATED);
	u32 tid = (u32)bpf_get_current_pid_tgid();
	if ((slot->flags & AF_S_REBORN_LIVE) && slot->state == AF_SLOT_LIVE) {
		/* given out twice: does an owner before this one have it registered? */
		s->wanted = (struct af_wanted){.before = AF_WHENEVER, .from = slot->live_from, .to = note->gen};
		bool twin = af_existing_in(slot, &s->wanted, &s->other);
		if (twin && s->other.file != note->file) {
			struct af_trigger_args a = {.ts = at->ts, .enter = at->enter, .addr = t->userdata,
						    .gen = slot->gen, .fd = t->fd, .epfd = t->epfd,
						    .arg = t->events, .stack = at->stack, .kind = AF_ADDED};
			af_note_copy(&s->reg, note, AF_EXISTS);
			af_suspect(AF_SUSPECT_ALIASED_SLOT, &a, af_tgid(), target, t, slot, &s->reg, &s->other);
		}
	}
	/* if no create comes to give it out before this thread waits, none is under way */
	if (slot->adder)
		af_put_off(t, slot, 0);
	if (slot->state == AF_SLOT_FREE)
		return;
	slot->fd = t->fd;
	slot->epfd = t->epfd;
	slot->add = *at;
	slot->idle = 0;
	slot->progressed = 0;
	slot->hup_since = 0;
	af_unflag(slot, AF_S_CLOSED | AF_S_DELETED);
	af_slot_waiter(slot, t->ep, tid, AF_S_ADD_BY_OTHER);
#if AF_OBJECT_OFFSET >= 0
	u64 object = 0;
	if (bpf_probe_read_user(&object, sizeof(object), (void *)(slot->addr + AF_OBJECT_OFFSET))) {
		af_count(AF_C_READ_FAULT);
	} else if (object) {
		struct af_slot_key okey = {.tgid = slot->tgid, .epoch = slot->epoch, .addr = object};
		u64 addr = slot->addr;
		slot->object = object;
		if (objects.update(&okey, &addr))
			af_count(AF_C_OBJECTS_FULL);
	}
#endif
}

/* Evidence for what comes of it. A number that was not open cannot be closed twice. */
AF_FN void af_add_failed_kept(struct af_target *target, struct af_thread *t, struct af_at *at, s32 error)
{
	if (t->fd < 0 || error == AF_EBADF)
		return;
	u64 addr = af_slot_behind(target, t->userdata, false);
	struct af_slot *slot = addr ? af_slot_find(target, addr) : 0;
	struct af_failed f = {.slot = addr, .enter = at->enter, .ts = at->ts, .ip = at->ip, .tid = at->tid,
			      .stack = at->stack, .fd = t->fd, .epfd = t->epfd, .gen = slot ? slot->gen : 0,
			      .error = (u32)-error};
	struct af_fd_key number = {.tgid = af_tgid(), .epoch = target->epoch, .fd = t->fd};
	struct af_slot_key key = {.tgid = af_tgid(), .epoch = target->epoch, .addr = addr};
	failed.update(&number, &f);
	if (slot)
		failed_slots.update(&key, &f);
}

AF_FN void af_add_failed(struct af_target *target, struct af_thread *t)
{
	struct af_reg *note = t->begun ? af_note(t->ep, t->file, t->fd) : 0;
	if (!note || note->add.enter != t->enter) {
		af_add_forgotten(target, t, true);
		return;
	}
	struct af_slot *slot = af_note_slot(note);
	struct af_reg_key key = {.ep = t->ep, .file = t->file, .fd = t->fd};
	if (slot) {
		af_unlink(slot, note);
		if (slot->adder == (u32)bpf_get_current_pid_tgid() && slot->state == AF_SLOT_FREE)
			slot->adder = 0;
		if ((slot->flags & AF_S_UNBORN) && !af_linked(slot))
			af_slot_forget(slot);
	}
	regs.delete(&key);
}

AF_FN void af_modified(struct af_target *target, struct af_thread *t, struct af_at *at)
{
	struct af_reg *note = af_note(t->ep, t->file, t->fd);
	if (!note || note->add.enter > at->enter)
		return; /* begun later: the MOD was through before it */
	if (note->mod.ts > at->enter || af_slot_behind(target, t->userdata, false) != note->slot) {
		/* another MOD of it may be under way or have come back meanwhile: who was last is asked, not guessed */
		struct af_epoll_event made = {};
		u64 item = af_find_item(t->ep, t->file, t->fd, &made);
		if (item && item != AF_TOO_MANY) {
			t->userdata = made.data;
			t->events = made.events;
		}
	}
	u64 addr = af_slot_behind(target, t->userdata, true);
	struct af_slot *slot = af_slot_find(target, addr);
	bool moved = addr != note->slot, changed = note->events != t->events;
	note->mod = *at;
	note->events = t->events;
	if (moved) {
		struct af_slot *old = af_note_slot(note);
		if (old)
			af_unlink(old, note);
		if (old && (old->flags & AF_S_UNBORN) && !af_linked(old))
			af_slot_forget(old);
		if (!slot)
			slot = af_slot_inferred(target, addr);
		note->slot = addr;
		note->gen = slot ? slot->gen : 0;
		if (slot) {
			af_link_set(slot, note);
			if (!slot->add.ts)
				slot->add = *at;
			slot->fd = t->fd;
			slot->epfd = t->epfd;
			af_unflag(slot, AF_S_CLOSED | AF_S_DELETED);
			if (slot->state == AF_SLOT_FREE && AF_CREATE_COMPLETE) {
				/* as with an ADD: a create may be about to give it out, or its memory is another object's */
				slot->adder = (u32)bpf_get_current_pid_tgid();
				af_flag(slot, AF_S_ADD_FREED);
				af_put_off(t, slot, 0);
			}
		}
	}
	note->userdata = t->userdata;
	if (!slot)
		return;
	/* armed again by another thread, it is how that one wakes the loop */
	if (moved || changed || slot->last_tid != at->tid) {
		slot->idle = 0;
		slot->progressed = 0;
	}
	af_edge(slot, t->events);
	af_used_after(t, slot, false);
	/* a one-shot that had fired told nothing of its slot's end: it will deliver again */
	if (slot->state == AF_SLOT_FREE && note->gen >= slot->live_from && note->gen <= slot->gen && !slot->adder &&
	    !(slot->flags & (AF_S_FREED_TOLD | AF_S_REARMED))) {
		if (!(slot->flags & AF_S_PENDING))
			af_flag(slot, AF_S_PENDING | AF_S_REARMED);
		af_put_off(t, slot, AF_S_PENDING);
	}
}

AF_FN void af_removed(struct af_target *target, struct af_thread *t, struct af_at *at)
{
	struct af_reg *note = af_note(t->ep, t->file, t->fd);
	/* one that was begun later belongs to the number's next life: the DEL was through before it */
	if (!note || note->add.enter > at->enter)
		return;
	note->flags |= AF_R_BY_DEL;
	note->state = AF_REG_ENDED;
	note->end = *at;
	struct af_slot *slot = af_note_slot(note);
	if (slot && slot->gen == note->gen) {
		slot->del = *at;
		af_flag(slot, AF_S_DELETED);
		af_slot_waiter(slot, t->ep, at->tid, AF_S_DEL_BY_OTHER);
		af_used_after(t, slot, true);
	}
	af_note_ended(note, slot);
}

/* EPOLL_CTL_DEL or MOD found no registration, or no descriptor. It is a finding where there had been one. */
AF_FN bool af_was_registered(struct af_target *target, struct af_thread *t, struct af_scratch *s)
{
	struct af_reg *note = af_note(t->ep, t->file, t->fd);
	if (note && note->state != AF_REG_ADDING) { /* ended, and not by a call of this process that we saw */
		af_note_copy(&s->reg, note, AF_GONE);
		return true;
	}
	struct af_reg *last = af_number(target, t->fd);
	/* nor where the number still is the very file that was removed: a second removal hits nobody else's */
	if (!last || (last->file == t->file && (last->flags & (AF_R_BY_DEL | AF_R_BY_CLOSE)) == AF_R_BY_DEL))
		return false;
	struct af_slot *slot = af_note_slot(last);
	/* an old story of the number, told by a slot that has been given back since, explains nothing */
	if (!slot || slot->gen != last->gen || (t->file && slot->state != AF_SLOT_LIVE &&
						slot->destroy.ts < t->wait.exit))
		return false;
	af_copy(&s->reg, last, sizeof(s->reg));
	s->reg.state = AF_REG_ENDED;
	return true;
}

AF_FN void af_failed_removal(struct af_target *target, struct af_thread *t, struct af_at *at, u16 kind, s32 ret,
			     struct af_scratch *s)
{
	struct af_slot *slot = af_note_slot(&s->reg);
	struct af_trigger_args a = {.ts = at->ts, .enter = at->enter, .addr = s->reg.userdata, .gen = s->reg.gen,
				    .fd = s->reg.fd, .epfd = s->reg.epfd, .ret = ret, .stack = at->stack,
				    .kind = kind};
	if (slot && slot->gen == s->reg.gen && slot->state == AF_SLOT_LIVE && kind == AF_REMOVED && !slot->del.ts)
		slot->del = *at;
	/* by what the registration had come to, as failed_removal of rules_calls.py tells them apart */
	u32 ended = s->reg.flags & (AF_R_BY_DEL | AF_R_BY_CLOSE);
	u32 why = ret == AF_EBADF ? 1 : ended == AF_R_BY_DEL ? 2 : s->reg.end.ts ? 3 : 4;
	u64 total = af_site_total(target, AF_SUSPECT_FAILED_REMOVAL | why << 16, at->stack);
	if (!af_site_told(total))
		return;
	a.arg = total > 0xffffffffull ? 0xffffffffu : (u32)total;
	af_suspect(AF_SUSPECT_FAILED_REMOVAL, &a, af_tgid(), target, t, slot, &s->reg, 0);
}

AF_FN void af_missed(struct af_thread *t, struct af_at *at, u64 slot)
{
	struct af_missed *m = &t->missed[t->missed_count & (AF_MISSED - 1)];
	t->missed_count += 1;
	m->at = at->ts;
	m->enter = at->enter;
	m->slot = slot;
	m->fd = t->fd;
	m->epfd = t->epfd;
	m->stack = at->stack;
	m->op = t->op;
}

/* No ADD followed before the wait: it was meant for a registration that is gone. One at a time. */
AF_FN void af_missed_sent(struct af_target *target, struct af_thread *t, struct af_scratch *s)
{
	struct af_at at;
	t->missed_count -= 1;
	struct af_missed *m = &t->missed[t->missed_count & (AF_MISSED - 1)];
	struct af_reg *last = m->at ? af_number(target, m->fd) : 0;
	if (!last || last->slot != m->slot)
		return;
	af_at_set(&at, m->enter, m->at, 0, (u32)bpf_get_current_pid_tgid(), m->stack);
	af_copy(&s->reg, last, sizeof(s->reg));
	s->reg.state = AF_REG_ENDED;
	af_failed_removal(target, t, &at, m->op == AF_CTL_MOD ? AF_MODIFIED : AF_REMOVED, AF_ENOENT, s);
}

int af_exit_ctl(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!t || !s || t->call != AF_CALL_CTL)
		return 0;
	t->call = AF_CALL_NONE;
	s32 ret = ctx->ret;
	/* of a DEL and a MOD the instruction is known; the stack is worth its microsecond when they fail */
	if (ret < 0 && t->op != AF_CTL_ADD)
		t->stack = af_stack_id(ctx);
	struct af_at at;
	af_at_set(&at, t->enter, bpf_ktime_get_ns(), t->ip, (u32)bpf_get_current_pid_tgid(), t->stack);
	u16 kind = t->op == AF_CTL_ADD ? AF_ADDED : t->op == AF_CTL_MOD ? AF_MODIFIED : AF_REMOVED;
	struct af_reg *note = af_note(t->ep, t->file, t->fd);
	u16 flags = t->op != AF_CTL_DEL && (AF_IS_RESERVED(t->userdata)) ? AF_F_NO_SLOT : 0;
	if (t->op == AF_CTL_DEL && note)
		t->userdata = note->userdata;
	else if (t->op == AF_CTL_DEL)
		flags |= AF_F_UNKNOWN;
	u32 gen = note && !(flags & AF_F_NO_SLOT) ? note->gen : 0;
	af_record(kind, flags, at.ts, at.enter, t->userdata, gen, t->fd, t->epfd, ret, t->events, t->stack);
	if (flags & AF_F_NO_SLOT)
		return 0;
	if (ret == 0) {
		if (t->op == AF_CTL_ADD)
			af_added(target, t, &at, s);
		else if (t->op == AF_CTL_MOD)
			af_modified(target, t, &at);
		else
			af_removed(target, t, &at);
		return 0;
	}
	if (t->op == AF_CTL_ADD) {
		af_add_failed_kept(target, t, &at, ret);
		af_add_failed(target, t);
		return 0;
	}
	if (ret != AF_EBADF && ret != AF_ENOENT)
		return 0;
	if (ret == AF_ENOENT && t->exists == AF_EXISTS) {
		struct af_reg *last = af_number(target, t->fd);
		if (!last || last->end.ts < t->enter)
			af_count(AF_C_AUDIT_MISSING);
	}
	if (t->fd < 0 || !af_was_registered(target, t, s)) {
		af_count(AF_C_NOT_REGISTERED);
		return 0;
	}
	/* a DEL on a number that is another file's by now may be to make sure, before the ADD of a new connection */
	if (ret == AF_ENOENT && t->missed_count < AF_MISSED &&
	    (t->op == AF_CTL_MOD || (AF_ASK && t->file != s->reg.file))) {
		af_number_keep(&s->reg);
		af_missed(t, &at, s->reg.slot);
		return 0;
	}
	af_failed_removal(target, t, &at, kind, ret, s);
	return 0;
}
