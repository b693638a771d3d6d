/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * What happens to file descriptors: close and its like end registrations, or are outlived by them; a dup is evidence
 * of who keeps a description open.
 */
AF_FN void af_slot_closed(struct af_target *target, struct af_thread *t, struct af_slot *slot, struct af_reg *note,
			  struct af_at *at)
{
	bool others = false;
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		struct af_link *link = &slot->links[i];
		others |= link->ep && link->gen == slot->gen && (link->fd != note->fd || link->file != note->file);
	}
	slot->close = *at;
	if (!others) /* of several descriptors the last one is the slot's end */
		af_flag(slot, AF_S_CLOSED);
	af_slot_waiter(slot, note->ep, at->tid, AF_S_CLOSE_BY_OTHER);
	if (slot->state == AF_SLOT_LIVE && !(slot->flags & AF_S_DELETED) && slot->last_tid != at->tid &&
	    af_batch_of(target, slot, slot->last_batch, slot->last_index, 0))
		af_flag(slot, AF_S_CLOSE_IN_BATCH);
	af_used_after(t, slot, true);
}

/* The number was closed. Whether that ended the registration is asked now, and again before anything is said: on
 * kernels before 6.6 the last reference goes only after this tracepoint (close_fd_get_file, __fput_sync). */
AF_FN void af_note_closed(struct af_target *target, struct af_thread *t, struct af_reg *note, struct af_at *at)
{
	struct af_slot *slot = af_note_slot(note);
	note->end = *at;
	note->flags |= AF_R_BY_CLOSE | (target->forks ? AF_R_FORKED : 0) |
		       (target->flags & AF_T_TABLE_SHARED ? AF_R_TABLE_SHARED : 0);
	if (slot && slot->gen == note->gen)
		af_slot_closed(target, t, slot, note, at);
	/* where the number leads to a file at this address again, that is another one by now, or the number never went */
	if (af_note_exists(note) == AF_GONE || (AF_ASK && af_file(note->fd) == note->file)) {
		af_note_ended(note, slot);
		return;
	}
	af_number_keep(note);
	if (!slot)
		return;
	/* What keeps the file may be a call under way on another thread (fdget, epi_fget), a forked child on its way to
	 * executing another program, or a duplicate that is closed next: asked again before the thread waits. */
	af_flag(slot, AF_S_CLOSE_PENDING);
	/* its destroy may be under way on another thread, which judges that itself */
	af_put_off(t, slot, AF_S_CLOSE_PENDING);
	u64 file = note->file;
	struct af_dup *dup = dups.lookup(&file);
	if (dup && dup->newfd != note->fd && af_waiter(note->ep) != at->tid && af_file(dup->newfd) == file)
		t->outlived = slot->addr;
}

/* A duplicate that is seen in the table is certain, and another thread may be told of it right now. */
AF_FN void af_outlived(struct af_target *target, struct af_thread *t, struct af_scratch *s)
{
	struct af_slot *slot = t->outlived ? af_slot_find(target, t->outlived) : 0;
	if (slot && slot->state == AF_SLOT_LIVE)
		af_settle(slot, s, false);
}

/* A close after EPOLL_CTL_DEL ends no registration any more; it is still the end of the slot's descriptor. */
AF_FN struct af_reg *af_removed_before(struct af_target *target, s32 fd, u64 file)
{
	struct af_reg *last = file ? af_number(target, fd) : 0;
	return last && last->file == file && (last->flags & (AF_R_BY_DEL | AF_R_BY_CLOSE)) == AF_R_BY_DEL ? last : 0;
}

AF_FN void af_close_begun(void *ctx, struct af_target *target, struct af_thread *t, s32 fd)
{
	t->fd = fd;
	t->stack = -1;
	t->closings = 0;
	t->begun = 0;
	t->file = af_file(fd);
#if AF_ASK
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	u64 node = af_first_item(t->file);
	if (!s)
		return;
	AF_KEPT(s->found) = 0;
	AF_LOOP
	for (u32 i = 0; i < AF_ITEMS; i++) {
		if (!node || AF_KEPT(s->found) >= AF_CLOSING)
			break;
		u64 item = node - AF_ITEM_LINK;
		struct af_filefd ffd = {};
		bpf_probe_read_kernel(&ffd, sizeof(ffd), (void *)(item + AF_ITEM_FFD));
		if (ffd.fd == fd && ffd.file == t->file) {
			s->items[AF_KEPT(s->found) & (AF_CLOSING - 1)] = item;
			AF_KEPT(s->found) += 1;
		}
		node = af_word(node);
	}
	if (node)
		af_count(AF_C_ITEMS_TRUNCATED);
	AF_LOOP
	for (u32 i = 0; i < AF_CLOSING; i++) {
		if (i >= AF_KEPT(s->found))
			break;
		u64 item = s->items[i];
		u64 ep = af_word(item + AF_ITEM_EP);
		struct af_epoll_event event = {};
		bpf_probe_read_kernel(&event, sizeof(event), (void *)(item + AF_ITEM_EVENT));
		struct af_reg *known = af_note(ep, t->file, fd);
		/* a child closes its copy of the number: that ends nothing of its parent's */
		if (known ? known->tgid != af_tgid()
			  : !af_note_inferred(target, ep, t->file, fd, -1, event.data, event.events, t->enter, item))
			continue;
		u32 n = AF_KEPT(t->closings) & (AF_CLOSING - 1);
		t->closing[n].ep = ep;
		t->closing[n].file = t->file;
		t->closing[n].fd = fd;
		t->closing[n].gap = 0;
		AF_KEPT(t->closings) += 1;
	}
#else
	struct af_reg *last = af_number(target, fd);
	if (last && af_note(last->ep, last->file, fd)) {
		t->closing[0].ep = last->ep;
		t->closing[0].file = last->file;
		t->closing[0].fd = fd;
		t->closing[0].gap = 0;
		t->closings = 1;
	}
#endif
	struct af_reg *before = t->closings ? 0 : af_removed_before(target, fd, t->file);
	if (!t->closings && !before)
		return;
	t->begun = 1;
	t->ip = AF_USER(ip);
	t->stack = af_stack_id(ctx);
	struct af_reg *note = before ? before : regs.lookup(&t->closing[0]);
	if (note)
		af_record(AF_CLOSE_BEGUN, 0, t->enter, t->enter, note->userdata, note->gen, fd, note->epfd, 0, 0,
			  t->stack);
}

AF_FN void af_bad_close_sent(struct af_target *target, struct af_thread *t, struct af_bad_close *bad, struct af_scratch *s)
{
	struct af_reg *last = af_number(target, bad->fd);
	struct af_trigger_args a = {.ts = bad->at, .enter = bad->enter, .fd = bad->fd, .epfd = -1, .ret = AF_EBADF,
				    .stack = bad->stack, .kind = AF_CLOSED};
	bad->at = 0;
	struct af_failed *f = af_failed_number(target, bad->fd, last);
	if (!f && !last)
		return;
	if (f) /* it was never registered in this life of the number */
		af_failed_copy(&s->reg, f, af_tgid(), target->epoch);
	else
		af_copy(&s->reg, last, sizeof(s->reg));
	s->reg.state = AF_REG_ENDED;
	struct af_slot *slot = af_note_slot(&s->reg);
	if (slot && slot->gen != s->reg.gen)
		slot = 0;
	u64 total = af_site_total(target, AF_SUSPECT_BAD_CLOSE, bad->stack);
	if (!af_site_told(total))
		return;
	a.arg = total > 0xffffffffull ? 0xffffffffu : (u32)total;
	af_suspect(AF_SUSPECT_BAD_CLOSE, &a, af_tgid(), target, t, slot, &s->reg, 0);
}

AF_FN void af_bad_close(void *ctx, struct af_target *target, struct af_thread *t, s32 fd, u64 now,
			struct af_scratch *s)
{
	s32 stack = af_stack_id(ctx);
	af_record(AF_CLOSED, AF_F_UNKNOWN, now, t->enter, 0, 0, fd, -1, AF_EBADF, 0, stack);
	/* nobody's connection was ever there; or a loop over all numbers, as before an exec */
	if (fd < 0 || (!af_number(target, fd) && !af_failed_number(target, fd, 0)) || t->closed_up >= 8 || t->closed_down >= 8) {
		af_count(AF_C_BAD_CLOSES);
		return;
	}
	t->bad.fd = fd;
	t->bad.at = now;
	t->bad.enter = t->enter;
	t->bad.stack = stack;
	if (!t->closed_up && !t->closed_down)
		af_bad_close_sent(target, t, &t->bad, s); /* else the next close tells */
}

/* Another close, or a wait: does the loop over numbers go on from the one that was not open? */
AF_FN void af_bad_close_judged(struct af_target *target, struct af_thread *t, s32 fd, struct af_scratch *s)
{
	if ((t->closed_up && fd == t->bad.fd + 1) || (t->closed_down && fd == t->bad.fd - 1)) {
		t->bad.at = 0;
		af_count(AF_C_BAD_CLOSES);
	} else {
		af_bad_close_sent(target, t, &t->bad, s);
	}
}

AF_FN void af_close_ended(struct af_target *target, struct af_thread *t, s32 ret, u64 now, struct af_scratch *s)
{
	t->outlived = 0;
	struct af_at at;
	af_at_set(&at, t->enter, now, t->ip, (u32)bpf_get_current_pid_tgid(), t->stack);
	AF_LOOP
	for (u32 i = 0; i < AF_CLOSING; i++) {
		if (i >= t->closings)
			break;
		struct af_reg *note = regs.lookup(&t->closing[i]);
		/* one that was begun later belongs to the number's next life */
		if (!note || note->add.enter > t->enter)
			continue;
		af_record(AF_CLOSED, 0, now, t->enter, note->userdata, note->gen, t->fd, note->epfd, ret, 0, t->stack);
		af_note_closed(target, t, note, &at);
	}
	struct af_reg *last = t->closings ? 0 : af_removed_before(target, t->fd, t->file);
	t->closings = 0;
	if (!last)
		return;
	struct af_slot *slot = af_note_slot(last);
	af_record(AF_CLOSED, 0, now, t->enter, last->userdata, last->gen, t->fd, last->epfd, ret, 0, t->stack);
	last->flags |= AF_R_BY_CLOSE;
	last->end = at;
	if (slot && slot->gen == last->gen)
		af_slot_closed(target, t, slot, last, &at);
}

int af_enter_close(struct af_sys_enter *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	t->call = AF_CALL_CLOSE;
	t->enter = bpf_ktime_get_ns();
	s32 number = (s32)ctx->args[0];
	int zero = 0;
	struct af_scratch *s = t->bad.at ? scratch.lookup(&zero) : 0;
	if (s)
		af_bad_close_judged(target, t, number, s);
	t->closed_up = number == t->closed_fd + 1 ? t->closed_up + 1 : 0;
	t->closed_down = number == t->closed_fd - 1 ? t->closed_down + 1 : 0;
	t->closed_fd = number;
	af_close_begun(ctx, target, t, (s32)ctx->args[0]);
	return 0;
}

int af_exit_close(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!t || !s || t->call != AF_CALL_CLOSE)
		return 0;
	t->call = AF_CALL_NONE;
	if (ctx->ret == AF_EBADF)
		af_bad_close(ctx, target, t, t->fd, bpf_ktime_get_ns(), s);
	else if (t->begun) {
		af_close_ended(target, t, ctx->ret, bpf_ktime_get_ns(), s);
		af_outlived(target, t, s);
	}
	return 0;
}

/* close_range(2) is evidence in the stream, of who closed what may have been registered: fd and ret are its span. What
 * it ended or did not is asked of the kernel. */
int af_exit_close_range(struct af_sys_exit *ctx)
{
	if (!af_target_now() || ctx->ret || (AF_USER(dx) & 4)) /* CLOSE_RANGE_CLOEXEC only marks */
		return 0;
	u64 now = bpf_ktime_get_ns();
	af_count(AF_C_RANGES);
	af_record(AF_CLOSED, 0, now, now, 0, 0, (s32)AF_USER(di), -1, (s32)AF_USER(si), 1, af_stack_id(ctx));
	return 0;
}

/* dup2(2) and dup3(2) close the new number first when it is open */
int af_enter_dup2(struct af_sys_enter *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	t->call = AF_CALL_DUP2;
	t->enter = bpf_ktime_get_ns();
	t->begun = 0;
	if (ctx->args[0] != ctx->args[1])
		af_close_begun(ctx, target, t, (s32)ctx->args[1]);
	return 0;
}

/* The number leads to its registered description again, as after a redirection: saved by dup, replaced by dup2, restored
 * by dup2. The registration is (description, number), and can be removed as if nothing had been. */
int af_restored(struct af_scratch *given)
{
#if AF_ASK
	struct af_scratch *s = af_own(given);
	if (!s)
		return 0;
	s32 fd = s->fds[0];
	u64 file = af_file(fd), node = af_first_item(file);
	AF_LOOP
	for (u32 i = 0; i < AF_ITEMS; i++) {
		if (!node)
			break;
		u64 item = node - AF_ITEM_LINK;
		s32 number = (s32)af_word(item + AF_ITEM_FFD + 8);
		node = af_word(node);
		struct af_reg *note = number == fd ? af_note(af_word(item + AF_ITEM_EP), file, fd) : 0;
		if (!note || note->tgid != af_tgid() || !(note->flags & AF_R_BY_CLOSE))
			continue;
		note->flags &= ~(AF_R_BY_CLOSE | AF_R_REPORTED);
		af_at_clear(&note->end);
		af_number_keep(note);
		struct af_slot *slot = af_note_slot(note);
		if (!slot || slot->gen != note->gen || slot->state != AF_SLOT_LIVE)
			continue;
		af_unflag(slot, AF_S_CLOSED | AF_S_ORPHANED | AF_S_CLOSE_IN_BATCH | AF_S_CLOSE_BY_OTHER);
		af_at_clear(&slot->close);
	}
#endif
	return 0;
}

AF_FN void af_dupped(void *ctx, s32 oldfd, s32 newfd, u64 enter, u64 now)
{
	u64 file = af_file(newfd);
	if (!file)
		return;
	s32 stack = af_stack_id(ctx);
	struct af_dup dup = {.enter = enter, .ts = now, .ip = AF_USER(ip),
			     .tid = (u32)bpf_get_current_pid_tgid(), .stack = stack, .oldfd = oldfd, .newfd = newfd};
	dups.update(&file, &dup);
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (s) {
		s->fds[0] = newfd;
		AF_CALL(8, af_restored, s);
	}
	af_record(AF_DUPPED, 0, now, enter, 0, 0, oldfd, -1, newfd, 0, stack);
}

int af_exit_dup2(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!t || !s || t->call != AF_CALL_DUP2)
		return 0;
	t->call = AF_CALL_NONE;
	if (ctx->ret < 0)
		return 0;
	u64 now = bpf_ktime_get_ns();
	if (t->begun) /* nobody is told right now: what replaces a number for a while restores it soon */
		af_close_ended(target, t, 0, now, s);
	s32 oldfd = (s32)AF_USER(di);
	if (oldfd != (s32)ctx->ret)
		af_dupped(ctx, oldfd, (s32)ctx->ret, t->enter, now);
	return 0;
}

int af_exit_dup(struct af_sys_exit *ctx)
{
	if (!af_target_now() || ctx->ret < 0)
		return 0;
	u64 now = bpf_ktime_get_ns();
	af_dupped(ctx, (s32)AF_USER(di), (s32)ctx->ret, now, now);
	return 0;
}

int af_exit_fcntl(struct af_sys_exit *ctx)
{
	if (!af_target_now())
		return 0;
	/* F_DUPFD 0, F_DUPFD_CLOEXEC 1030 (fcntl(2)) */
	u32 command = (u32)AF_USER(si);
	if (ctx->ret < 0 || (command != 0 && command != 1030))
		return 0;
	u64 now = bpf_ktime_get_ns();
	af_dupped(ctx, (s32)AF_USER(di), (s32)ctx->ret, now, now);
	return 0;
}
