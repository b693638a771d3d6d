/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The steps of calls about epoll and of the program's own functions: what the probe program is given, what the kernel
 * does, and what the oracle is told.
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
		if (players[i].adding == 1 && players[i].fd == p->fd && players[i].epfd == p->epfd) {
			/* two at once: what is remembered may be the wrong one */
			players[i].noted = p->noted = 0;
			truth.named[p->fd] |= 1u << slot;
		}
	p->adding = 1;
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
	for (u32 i = 0; r->slot != slot && r->slot >= 0 && i < truth.count; i++) {
		struct truth_reg *q = &truth.regs[i]; /* it was moved to a slot that others have registered */
		if (q != r && truth_lasts(q) && q->slot == r->slot && q->life != r->life)
			truth_may(AF_SUSPECT_ALIASED_SLOT, r->slot);
	}
	if (s->state != TRUTH_LIVE)
		return;
	bool same = player_is_adding(slot, 0), other = false; /* who registers it just now is another, or the same */
	for (u32 i = 0; i < truth.count; i++) {
		struct truth_reg *q = &truth.regs[i];
		if (q == r || !truth_lasts(q) || q->slot != slot || q->life < s->from || q->life == p->life)
			continue;
		truth_may(AF_SUSPECT_ALIASED_SLOT, slot);
		if (q->life >= s->life || !q->noted || q->moving)
			continue;
		same |= q->file == r->file;
		other |= q->file != r->file;
	}
	/* of a number that is being closed, what was begun of it may be given up */
	if (other && !same && truth_lasts(r) && r->slot == slot && r->noted && !r->loose && !r->closed && r->life == s->life)
		truth_must(AF_SUSPECT_ALIASED_SLOT, slot);
}

static void step_removal_failed(struct player *p, bool del)
{
	for (s32 slot = 0; slot < SIM_SLOTS; slot++)
		if (truth.named[p->fd] & 1u << slot)
			truth_may(AF_SUSPECT_FAILED_REMOVAL, slot);
	struct truth_reg *r = truth.last[p->fd] ? &truth.regs[truth.last[p->fd] - 1] : 0;
	if (r && r->removed && p->meant == r->file)
		return; /* removed twice: nobody else's registration can have been meant */
	if (p->ret == SIM_ENOENT && r && p->meant != r->file)
		p->missed = 1; /* the number is another file's: an ADD may explain it, until the thread waits */
	if (!del || p->missed || !r || r->live || !r->ended || !r->noted || r->loose || r->moving || r->slot < 0 ||
	    truth.named[p->fd] != 1u << r->slot)
		return;
	for (u32 i = 0; i < SIM_THREADS; i++)
		if (players[i].adding && players[i].fd == p->fd)
			return;
	for (u32 i = 0; i < truth.count; i++)
		if (truth.regs[i].fd == p->fd && truth.regs[i].slot == r->slot && truth.regs[i].life != r->life)
			return; /* of two lives in two instances: which one ended last is remembered */
	struct truth_slot *s = &truth.slots[r->slot];
	if (s->state == TRUTH_LIVE && s->life == r->life)
		truth_must(AF_SUSPECT_FAILED_REMOVAL, r->slot);
}

static void step_ctl_returns(struct player *p, const struct op *op, bool began)
{
	if (op->kind == OP_ADD) {
		if (!p->ret) {
			/* of one whose number led elsewhere when it began, nothing is known when it returns either */
			truth.regs[p->reg].returned = !began || truth.regs[p->reg].file == p->file;
			step_added(p, op->c);
		}
		if (p->ret && began && truth.slots[op->c].adder == 1 + playing)
			truth.slots[op->c].adder = 0;
		if (p->ret && began)
			truth.last[p->fd] = 0; /* its note has taken the place of the last one's */
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
		if (truth.regs[p->reg].moving && truth.regs[p->reg].slot == op->c) {
			truth.regs[p->reg].life = truth.slots[op->c].life;
			if (AF_CREATE_COMPLETE && truth_is_free(op->c)) {
				/* as with an ADD: another object's memory, or what a create is about to give out */
				truth_add_begun(op->c, playing);
				truth.regs[p->reg].loose = 1;
			}
		}
		truth.regs[p->reg].moving = 0;
		if (op->kind == OP_MOD && truth_is_free(op->c) && !truth.slots[op->c].adder)
			truth_rearmed(op->c, playing);
		truth.regs[p->reg].removed |= op->kind == OP_DEL;
		truth.regs[p->reg].ended = op->kind == OP_DEL && truth.regs[p->reg].begun < p->entered;
	} else if (p->ret == SIM_ENOENT && op->kind == OP_MOD) {
		p->missed = 1;
	} else if (p->ret == SIM_ENOENT || p->ret == SIM_EBADF) {
		step_removal_failed(p, op->kind == OP_DEL);
	}
}

/* A MOD within another call on the same registration: who returns last is believed, and may be wrong. */
static void step_contended(struct player *p, u32 number)
{
	for (u32 i = 0; i < SIM_THREADS; i++) {
		struct player *other = &players[i];
		if (other == p || !other->control || other->fd != p->fd || other->epfd != p->epfd)
			continue;
		truth.confused |= number == 3 && other->control == 3;
		if (!p->ret && number != 2 && (number == 3 || other->control == 3))
			truth.regs[p->reg].noted = 0;
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
		p->meant = sim_file_of(files, p->fd);
		p->noted = p->loose = p->adding = 0;
		p->control = number;
		u64 at = SIM_STACK_AT(playing, p->depth + 1) + 16;
		*(struct sim_event *)(sim.user + (at - SIM_USER)) = event;
		step_registers(p, p->epfd, number, p->fd);
		if (number == 1)
			step_add_begins(p, op->c);
		probe_enter(af_enter_ctl, p->epfd, number, p->fd, at);
	} else if (step == STEP_EFFECT) {
		struct sim_file *poll = sim_file_of(files, p->epfd), *file = sim_file_of(files, p->fd);
		struct sim_epitem *item = poll && file && poll->poll ? sim_item(poll->private_data, file, p->fd) : 0;
		if (number != 1 && item)
			p->reg = item->reg;
		p->ret = sim_epoll_ctl(files, p->epfd, number, p->fd, event);
		step_contended(p, number);
		p->effect = truth_step;
		p->adding = p->adding ? 2 : 0;
	} else {
		bool began = p->adding;
		p->control = 0;
		p->adding = 0;
		step_ctl_returns(p, op, began);
		probe_exit(af_exit_ctl, p->ret);
	}
}

/* -- epoll_wait */

static void step_wait(struct player *p, const struct op *op, u32 step)
{
	u64 array = SIM_ARRAY_AT(playing);
	u32 most = op->b && op->b < SIM_EVENTS ? op->b : SIM_EVENTS;
	if (step == STEP_ENTER) {
		p->epfd = vars[op->a];
		for (u32 depth = p->depth; depth <= MOST_DEPTH; depth++)
			if (p->batch_epfd[depth] == p->epfd)
				p->batch[depth] = 0;
		step_registers(p, p->epfd, array, most);
		if (p->missed)
			truth_may_all(AF_SUSPECT_FAILED_REMOVAL);
		if (p->bad)
			truth_may_all(AF_SUSPECT_BAD_CLOSE);
		p->missed = p->bad = 0;
		struct sim_file *poll = sim_file_of(sim.current->files, p->epfd);
		truth_settle(playing, false, poll && poll->poll ? poll->private_data : (void *)-1);
		probe_enter(af_enter_wait, p->epfd, array, most, 0);
	} else if (step == STEP_EFFECT) {
		p->ret = sim_epoll_wait(sim.current->files, p->epfd, array, most);
		for (s32 i = 0; i < p->ret; i++)
			p->told_by[i] = sim_told_by[i];
	} else {
		p->batch_epfd[p->depth] = p->epfd;
		for (s32 i = 0; i < p->ret; i++) {
			struct sim_event *event = (struct sim_event *)(sim.user + (array - SIM_USER)) + i;
			s32 slot = truth_slot_of(event->data);
			p->batch[p->depth] |= 1u << slot;
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
		if (truth_is_free(op->a)) {
			truth_may(AF_SUSPECT_STALE_DISPATCH, op->a);
			truth_may(AF_SUSPECT_FREED_IN_BATCH, op->a); /* that it was freed there is proven now */
		}
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
