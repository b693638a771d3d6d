/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The steps of calls about descriptors and processes: close and its like, dup, fork, what lies in flight in a socket.
 */
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
		if (!truth_lasts(r) || !looked || !r->returned || !r->noted || r->moving || r->slot < 0)
			continue;
		r->due = 1;
		r->closer = playing;
		r->due_life = truth.slots[r->slot].life;
	}
	p->closing = 0;
}

/* Is the last registration under the number over, and its end seen? Of other numbers nothing is known. */
static bool step_number_known(s32 fd)
{
	struct truth_reg *r = fd >= 0 && truth.last[fd] ? &truth.regs[truth.last[fd] - 1] : 0;
	return r && !r->live && r->ended && r->noted && !r->loose && !r->moving;
}

static void step_close(struct player *p, const struct op *op, u32 step)
{
	if (step == STEP_ENTER) {
		p->fd = vars[op->a];
		if (p->bad)
			truth_may_all(AF_SUSPECT_BAD_CLOSE);
		p->bad = 0;
		p->run = p->fd == p->closed_fd + 1 || p->fd == p->closed_fd - 1; /* as in a loop over all numbers */
		p->closed_fd = p->fd;
		p->closing = step_registered_under(p->fd);
		step_registers(p, p->fd, 0, 0);
		probe_enter(af_enter_close, p->fd, 0, 0, 0);
	} else if (step == STEP_EFFECT || step == STEP_TABLE) {
		p->putting = step_take_out(p->fd);
		p->ret = p->putting ? 0 : SIM_EBADF;
		if (step == STEP_EFFECT && p->putting)
			sim_put(p->putting);
		else if (op->kind == OP_LATE_CLOSE && p->putting && --p->putting->refs)
			p->putting = 0; /* not the last reference: nothing is left to do */
	} else if (step == STEP_PUT) {
		if (p->putting && op->kind == OP_LATE_CLOSE)
			sim_release(p->putting); /* task work */
		else if (p->putting)
			sim_put(p->putting);
	} else {
		if (p->ret) {
			truth_may_all(AF_SUSPECT_BAD_CLOSE);
			p->bad = p->run;
			if (step_number_known(p->fd) && !p->run)
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
