/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The steps of each call: what the probe program is given, what the kernel does, and what the oracle is told.
 */
static void step_registers(struct player *p, u64 di, u64 si, u64 dx)
{
	struct pt_regs *regs = &sim.current->regs;
	u64 site = 0x1000ull * (playing + 1) + 0x10ull * p->op;
	regs->ip = 0x400000 + site;
	regs->sp = SIM_STACK_AT(playing, p->depth + 1);
	regs->di = di;
	regs->si = si;
	regs->dx = dx;
	/* the return address of the call, which the caller has pushed */
	*(u64 *)(sim.user + (regs->sp - SIM_USER)) = 0x500000 + site;
}

static void truth_may_all(u32 what)
{
	truth.may_any |= TRUTH_BITS(what);
	for (s32 slot = 0; slot < SIM_SLOTS; slot++)
		truth_may(what, slot);
}

/* -- epoll_ctl */

static bool step_exists(struct player *p)
{
	struct sim_files *files = sim.current->files;
	struct sim_file *poll = sim_file_of(files, p->epfd), *file = sim_file_of(files, p->fd);
	return poll && file && poll->poll && sim_item(poll->private_data, file, p->fd);
}

static void step_add_begins(struct player *p, s32 slot)
{
	struct sim_files *files = sim.current->files;
	struct sim_file *poll = sim_file_of(files, p->epfd);
	if (step_exists(p) || !sim_file_of(files, p->fd) || !poll || !poll->poll)
		return; /* it would fail, as things are */
	p->noted = 1;
	for (u32 i = 0; i < SIM_THREADS; i++)
		if (players[i].adding == 1 && players[i].fd == p->fd && players[i].epfd == p->epfd)
			players[i].noted = p->noted = 0; /* two at once: what is remembered may be the wrong one */
	p->adding = 1;
	truth.named[p->fd] |= 1u << slot;
	p->file = sim_file_of(files, p->fd);
	p->loose = AF_CREATE_COMPLETE && truth_is_free(slot);
	truth_add_begun(slot, playing);
	p->life = truth.slots[slot].life;
}

/* Both owners of a slot that was given out twice have registered it. */
static void step_added(struct player *p, s32 slot)
{
	struct truth_reg *r = &truth.regs[p->reg];
	struct truth_slot *s = &truth.slots[slot];
	if (s->state != TRUTH_LIVE)
		return;
	bool same = player_is_adding(slot, 0), other = false; /* who registers it just now is another, or the same */
	for (u32 i = 0; i < truth.count; i++) {
		struct truth_reg *q = &truth.regs[i];
		if (q == r || !q->live || q->slot != slot || q->life < s->from || q->life == r->life)
			continue;
		truth_may(AF_SUSPECT_ALIASED_SLOT, slot);
		if (q->life >= s->life || !q->noted || q->moving)
			continue;
		same |= q->file == r->file;
		other |= q->file != r->file;
	}
	/* of a number that is being closed, what was begun of it may be given up */
	if (other && !same && r->live && r->slot == slot && r->noted && !r->loose && !r->closed && r->life == s->life)
		truth_must(AF_SUSPECT_ALIASED_SLOT, slot);
}

static void step_removal_failed(struct player *p, bool del)
{
	for (s32 slot = 0; slot < SIM_SLOTS; slot++)
		if (truth.named[p->fd] & 1u << slot)
			truth_may(AF_SUSPECT_FAILED_REMOVAL, slot);
	struct truth_reg *r = truth.last[p->fd] ? &truth.regs[truth.last[p->fd] - 1] : 0;
	if (!del || !r || r->live || !r->ended || !r->noted || r->loose || r->moving || r->slot < 0 ||
	    truth.named[p->fd] != 1u << r->slot)
		return;
	for (u32 i = 0; i < SIM_THREADS; i++)
		if (players[i].adding && players[i].fd == p->fd)
			return;
	struct truth_slot *s = &truth.slots[r->slot];
	if (s->state == TRUTH_LIVE && s->life == r->life)
		truth_must(AF_SUSPECT_FAILED_REMOVAL, r->slot);
}

static void step_ctl_returns(struct player *p, const struct op *op, bool began)
{
	if (op->kind == OP_ADD) {
		if (!p->ret) {
			truth.regs[p->reg].returned = 1;
			step_added(p, op->c);
		}
		if (p->ret && began) {
			truth.slots[op->c].adder = 0;
			truth.last[p->fd] = 0; /* its note has taken the place of the last one's */
		}
		return;
	}
	if (p->fd < 0)
		return;
	if (!p->ret) {
		/* who asked meanwhile found that the registration of the old slot was gone, and forgot it */
		if (truth.regs[p->reg].moving && truth_step != p->effect + 1)
			truth.regs[p->reg].noted = 0;
		if (truth.regs[p->reg].moving && truth.slots[op->c].state == TRUTH_UNSEEN)
			truth_inferred(op->c);
		if (truth.regs[p->reg].moving && truth.regs[p->reg].slot == op->c)
			truth.regs[p->reg].life = truth.slots[op->c].life;
		truth.regs[p->reg].moving = 0;
		truth.regs[p->reg].ended = op->kind == OP_DEL && truth.regs[p->reg].begun < p->entered;
	} else if (p->ret == SIM_ENOENT && op->kind == OP_MOD) {
		p->missed = 1;
	} else if (p->ret == SIM_ENOENT || p->ret == SIM_EBADF) {
		step_removal_failed(p, op->kind == OP_DEL);
	}
}

static void step_ctl(struct player *p, const struct op *op, u32 step)
{
	static const u32 flags[] = {1, 1 | SIM_EDGE, 1 | SIM_ONESHOT};
	u32 number = op->kind == OP_ADD ? 1 : op->kind == OP_DEL ? 2 : 3;
	struct sim_event event = {flags[op->d % 3], SIM_SLOT_AT(op->c)};
	struct sim_files *files = sim.current->files;
	if (step == STEP_ENTER) {
		p->epfd = vars[op->a];
		p->fd = vars[op->b];
		p->slot = op->c;
		p->noted = p->loose = p->adding = 0;
		u64 at = SIM_STACK_AT(playing, p->depth + 1) + 16;
		*(struct sim_event *)(sim.user + (at - SIM_USER)) = event;
		step_registers(p, p->epfd, number, p->fd);
		if (p->missed)
			truth_may_all(AF_SUSPECT_FAILED_REMOVAL);
		p->missed = 0;
		if (number == 1)
			step_add_begins(p, op->c);
		probe_enter(af_enter_ctl, p->epfd, number, p->fd, at);
	} else if (step == STEP_EFFECT) {
		struct sim_file *poll = sim_file_of(files, p->epfd), *file = sim_file_of(files, p->fd);
		struct sim_epitem *item = poll && file && poll->poll ? sim_item(poll->private_data, file, p->fd) : 0;
		if (number != 1 && item)
			p->reg = item->reg;
		p->ret = sim_epoll_ctl(files, p->epfd, number, p->fd, event);
		p->effect = truth_step;
		p->adding = p->adding ? 2 : 0;
	} else {
		bool began = p->adding;
		p->adding = 0;
		step_ctl_returns(p, op, began);
		probe_exit(af_exit_ctl, p->ret);
	}
}

/* -- close and its like */

static u64 step_registered_under(s32 fd)
{
	struct sim_file *file = sim_file_of(sim.current->files, fd);
	u64 found = 0;
	for (u32 i = 0; i < truth.count; i++)
		if (truth.regs[i].live && truth.regs[i].fd == fd && truth.regs[i].file == file)
			found |= 1ull << i;
	return found;
}

static struct sim_file *step_take_out(s32 fd)
{
	u64 under = step_registered_under(fd);
	for (u32 i = 0; i < truth.count; i++)
		if (under & 1ull << i)
			truth.regs[i].closed = 1;
	for (u32 i = 0; i < SIM_THREADS; i++)
		if (players[i].adding == 1 && players[i].fd == fd)
			players[i].noted = 0; /* closed within its ADD: given up */
	return sim_take_out(sim.current->files, fd);
}

/* Close has returned. What outlived it is to be told, where its registrations were looked at before (not by
 * close_range, which is seen at its exit only). */
static void step_closed(struct player *p, bool looked)
{
	for (u32 i = 0; i < truth.count; i++) {
		struct truth_reg *r = &truth.regs[i];
		if (!(p->closing & 1ull << i))
			continue;
		r->ended = looked && !r->live && r->begun < p->entered;
		r->noted &= r->returned || !looked; /* a close within its ADD: given up */
		if (sim_file_of(sim.current->files, r->fd) == r->file) {
			r->noted = 0; /* the number leads there again: nothing outlived it, and nothing more is said */
			continue;
		}
		if (!r->live || !looked || !r->returned || !r->noted || r->moving || r->slot < 0)
			continue;
		r->due = 1;
		r->closer = playing;
		r->due_life = truth.slots[r->slot].life;
	}
	p->closing = 0;
}

static void step_close(struct player *p, const struct op *op, u32 step)
{
	if (step == STEP_ENTER) {
		p->fd = vars[op->a];
		p->closing = step_registered_under(p->fd);
		step_registers(p, p->fd, 0, 0);
		probe_enter(af_enter_close, p->fd, 0, 0, 0);
	} else if (step == STEP_EFFECT || step == STEP_TABLE) {
		p->putting = step_take_out(p->fd);
		p->ret = p->putting ? 0 : SIM_EBADF;
		if (step == STEP_EFFECT && p->putting)
			sim_put(p->putting);
	} else if (step == STEP_PUT) {
		if (p->putting)
			sim_put(p->putting);
	} else {
		if (p->ret) {
			truth_may_all(AF_SUSPECT_BAD_CLOSE);
			truth.must_any |= TRUTH_BITS(AF_SUSPECT_BAD_CLOSE);
			p->closing = 0;
		}
		step_closed(p, true);
		probe_exit(af_exit_close, p->ret);
	}
}

static void step_dup2(struct player *p, const struct op *op, u32 step)
{
	struct sim_files *files = sim.current->files;
	s32 from = p->epfd, to = p->fd;
	if (step == STEP_ENTER) {
		p->epfd = vars[op->a];
		p->fd = vars[op->b];
		p->closing = p->epfd == p->fd ? 0 : step_registered_under(p->fd);
		step_registers(p, p->epfd, p->fd, 0);
		probe_enter(af_enter_dup2, p->epfd, p->fd, 0, 0);
	} else if (step == STEP_EFFECT) {
		struct sim_file *file = sim_file_of(files, from);
		p->ret = file && to >= 0 ? to : SIM_EBADF;
		if (p->ret < 0 || from == to)
			return;
		struct sim_file *over = file == sim_file_of(files, to) ? sim_take_out(files, to) : step_take_out(to);
		files->fd[to] = file;
		file->refs++;
		if (over)
			sim_put(over);
	} else {
		if (p->ret < 0)
			p->closing = 0;
		step_closed(p, true);
		probe_exit(af_exit_dup2, p->ret);
	}
}

static void step_close_range(struct player *p, const struct op *op, u32 step)
{
	s32 first = vars[op->a], last = vars[op->b];
	if (step == STEP_EFFECT) {
		step_registers(p, (u32)first, (u32)last, 0);
		p->ret = first < 0 || last < first ? SIM_EINVAL : 0;
		p->closing = 0;
		for (s32 fd = first; !p->ret && fd <= last; fd++) {
			p->closing |= step_registered_under(fd);
			struct sim_file *file = step_take_out(fd);
			if (file)
				sim_put(file);
		}
	} else {
		step_closed(p, false);
		probe_exit(af_exit_close_range, p->ret);
	}
}

/* -- epoll_wait */

static void step_wait(struct player *p, const struct op *op, u32 step)
{
	u64 array = SIM_ARRAY_AT(playing);
	u32 most = op->b && op->b < SIM_EVENTS ? op->b : SIM_EVENTS;
	if (step == STEP_ENTER) {
		p->epfd = vars[op->a];
		if (p->batch_epfd == p->epfd && p->depth <= p->batch_depth)
			p->batch = 0;
		step_registers(p, p->epfd, array, most);
		if (p->missed)
			truth_may_all(AF_SUSPECT_FAILED_REMOVAL);
		p->missed = 0;
		truth_settle(playing, false);
		probe_enter(af_enter_wait, p->epfd, array, most, 0);
	} else if (step == STEP_EFFECT) {
		p->ret = sim_epoll_wait(sim.current->files, p->epfd, array, most);
		for (s32 i = 0; i < p->ret; i++)
			p->told_by[i] = sim_told_by[i];
	} else {
		p->batch_epfd = p->epfd;
		p->batch_depth = p->depth;
		for (s32 i = 0; i < p->ret; i++) {
			struct sim_event *event = (struct sim_event *)(sim.user + (array - SIM_USER)) + i;
			s32 slot = truth_slot_of(event->data);
			p->batch |= 1u << slot;
			truth_delivered(slot, &truth.regs[p->told_by[i]]);
		}
		probe_exit(af_exit_wait, p->ret);
	}
}

/* -- functions of the program */

static void step_hit(struct player *p, const struct op *op)
{
	struct pt_regs *regs = &sim.current->regs;
	u64 addr = SIM_SLOT_AT(op->a);
	step_registers(p, addr, 0, 0);
	regs->ax = addr;
	if ((op->kind == OP_CREATE && !AF_HAVE_CREATE) || (op->kind == OP_DISPATCH && !AF_HAVE_DISPATCH)) {
		return; /* nobody looks */
	} else if (op->kind == OP_CREATE) {
		truth_create(op->a);
		probe_run(af_site_create, regs);
	} else if (op->kind == OP_DISPATCH) {
		if (truth_is_free(op->a))
			truth_may(AF_SUSPECT_STALE_DISPATCH, op->a);
		probe_run(af_site_dispatch, regs);
	} else {
		bool nested = false;
		for (u32 i = 0; i < p->depth; i++)
			nested |= p->frames[i] == op->a;
		if (player_in_batch(op->a))
			truth_may(AF_SUSPECT_FREED_IN_BATCH, op->a);
		truth_destroy(op->a, playing, nested, player_is_adding(op->a, 0));
		probe_run(af_site_destroy, regs);
		if (p->depth < MOST_DEPTH)
			p->frames[p->depth++] = op->a;
	}
}

/* -- descriptors and processes */

static struct sim_file *step_file_of_var(u32 var)
{
	for (u32 i = 0; i < SIM_FILES; i++)
		if (sim.files[i].refs && sim.files[i].serial == var_serial[var])
			return &sim.files[i];
	return 0;
}

static void step_opened(u32 var, s32 fd)
{
	if (fd < 0)
		return;
	vars[var] = fd;
	struct sim_file *file = sim_file_of(sim.current->files, fd);
	if (file)
		var_serial[var] = file->serial;
}

static void step_dup(struct player *p, const struct op *op, u32 step)
{
	if (step == STEP_EFFECT) {
		p->fd = vars[op->a];
		step_registers(p, p->fd, 0, 0);
		p->ret = sim_dup(sim.current->files, p->fd);
	} else {
		step_opened(op->b, p->ret);
		probe_exit(af_exit_dup, p->ret);
	}
}

static void step_process(const struct op *op, u32 step)
{
	struct sim_task *child = &sim.child_tasks[op->a % SIM_PROCESSES];
	if (op->kind == OP_FORK && step == STEP_EFFECT) {
		sim_drop_all(child->files);
		sim_fork(sim.current->files, child->files);
	} else if (op->kind == OP_FORK) {
		struct { u64 common; u32 pid, pad; u64 flags; } ctx = {.pid = child->pid};
		probe_run(af_newtask, &ctx);
	} else if (step == STEP_EFFECT) {
		sim_drop_all(child->files);
	} else {
		struct { u64 common; } ctx = {0};
		sim.current = child;
		probe_run(af_exited, &ctx);
	}
}

static void step_simple(struct player *p, const struct op *op)
{
	struct sim_files *files = sim.current->files;
	struct sim_file *file = 0;
	switch (op->kind) {
	case OP_SOCKET:
		step_opened(op->a, sim_open(files, false));
		break;
	case OP_READY:
	case OP_DRAIN:
		file = step_file_of_var(op->a);
		if (file && op->kind == OP_READY)
			sim_ready(file);
		else if (file)
			file->ready = false;
		break;
	case OP_SEND:
		file = sim.in_flight[op->a] ? 0 : sim_file_of(files, vars[op->a]);
		if (file && ++file->refs)
			sim.in_flight[op->a] = file;
		break;
	case OP_RECEIVED:
		file = sim.in_flight[op->a];
		sim.in_flight[op->a] = 0;
		if (file)
			sim_put(file);
		break;
	default: /* OP_RETURN */
		if (p->depth)
			p->depth--;
	}
}
