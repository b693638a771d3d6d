/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Runs a scenario's threads in a given order of their steps, or in every order.
 */
static void machine_play(struct player *p, const struct op *op, u32 step)
{
	switch (op->kind) {
	case OP_EPOLL:
		if (step == STEP_EFFECT) {
			p->ret = sim_open(sim.current->files, true);
		} else {
			step_opened(op->a, p->ret);
			probe_exit(af_exit_create, p->ret);
		}
		break;
	case OP_ADD:
	case OP_MOD:
	case OP_DEL:
		step_ctl(p, op, step);
		break;
	case OP_CLOSE:
	case OP_SLOW_CLOSE:
	case OP_LATE_CLOSE:
		step_close(p, op, step);
		break;
	case OP_DUP:
		step_dup(p, op, step);
		break;
	case OP_DUP2:
		step_dup2(p, op, step);
		break;
	case OP_CLOSE_RANGE:
		step_close_range(p, op, step);
		break;
	case OP_WAIT:
		step_wait(p, op, step);
		break;
	case OP_CREATE:
	case OP_DESTROY:
	case OP_DISPATCH:
		step_hit(p, op);
		break;
	case OP_FORK:
	case OP_CHILD_EXIT:
		step_process(op, step);
		break;
	default:
		step_simple(p, op);
	}
}

static bool overlapped; /* a call began, or had its effect, within another thread's */

/* One step of a thread; false when it has none left. */
static bool machine_step(u32 thread, const struct op *ops, u32 count)
{
	struct player *p = &players[thread];
	if (p->op >= count)
		return false;
	const struct op *op = &ops[p->op];
	u32 step = op_steps[op->kind][p->step];
	if (!p->step)
		p->entered = truth_step;
	playing = thread;
	sim.current = &sim.tasks[thread];
	sim.now += 100;
	for (u32 i = 0; i < SIM_THREADS; i++)
		overlapped |= i != thread && players[i].step;
	truth_step_begins();
	machine_play(p, op, step);
	truth_step_ends();
	truth_step++;
	if (op_steps[op->kind][++p->step] == STEP_END) {
		p->op++;
		p->step = 0;
	}
	return true;
}

static u64 lifetimes_before;

static void machine_begin(const struct scenario *s)
{
	sim_reset();
	sim_maps_reset();
	__builtin_memset(counters_values, 0, sizeof(counters_values));
	__builtin_memset(truth.slots, 0, sizeof(truth.slots));
	__builtin_memset(truth.last, 0, sizeof(truth.last));
	__builtin_memset(truth.named, 0, sizeof(truth.named));
	truth.count = truth.destroys = 0;
	__builtin_memset(players, 0, sizeof(players));
	for (u32 i = 0; i < SIM_VARS; i++)
		vars[i] = -1;
	for (u32 i = 0; i < SIM_THREADS; i++)
		for (u32 depth = 0; depth <= MOST_DEPTH; depth++)
			players[i].batch_epfd[depth] = -1;
	run_used = 0;
	wrong = (struct violation){0};
	lifetimes_before = lifetime_heads_values[0].written;
	u32 tgid = sim.tasks[0].tgid;
	struct af_target target = {.armed = sim.now, .epoch = af_epoch(sim.now)};
	targets.update(&tgid, &target);
	overlapped = false;
	truth_step = 1;
	while (machine_step(0, s->prepare, s->prepared))
		;
	players[0].op = players[0].step = 0;
	truth_prepared = truth_step;
}

/* Everything is judged, as the session does with what no thread judges itself; then the accounts must be right. */
static void machine_end(void)
{
	static struct sim_task session = {.tgid = 999, .pid = 999};
	u32 epoch = 0, tgid = sim.tasks[0].tgid;
	struct af_target *target = targets.lookup(&tgid);
	if (target)
		epoch = target->epoch;
	sim.current = &session;
	truth_step_begins();
	truth_settle(0, true, 0);
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		for (s32 slot = 0; slot < SIM_SLOTS; slot++) {
			struct af_settle_args args = {.tgid_epoch = (u64)tgid << 32 | epoch, .addr = SIM_SLOT_AT(slot)};
			probe_run(af_settle_now, &args);
		}
	}
	truth_step_ends();
	if (lifetime_heads_values[0].written - lifetimes_before != truth.destroys && !truth.confused)
		truth_wrong(LIFETIMES, (u32)(lifetime_heads_values[0].written - lifetimes_before), truth.destroys);
	static const u8 losses[] = {AF_C_URGENT_LOST,	  AF_C_SLOTS_FULL,	AF_C_REGS_FULL,	     AF_C_PENDING_FULL,
				    AF_C_THREADS_FULL,	  AF_C_STACK_FAILED,	AF_C_TAILCALL_FAILED, AF_C_ITEMS_TRUNCATED,
				    AF_C_SUSPECTS_DROPPED, AF_C_OBJECTS_FULL};
	for (u32 i = 0; i < sizeof(losses); i++)
		if (counters_values[losses[i]])
			truth_wrong(LOST, losses[i], 0);
	static const u8 audits[] = {AF_C_AUDIT_ADD, AF_C_AUDIT_MISSING, AF_C_AUDIT_UNSEEN};
	/* what another thread's call has done, and not yet told, explains what the audit wonders at */
	for (u32 i = 0; i < sizeof(audits) && !overlapped; i++)
		if (counters_values[audits[i]])
			truth_wrong(AUDIT, audits[i], 0);
}

/* -- for the driver */

/* Plays `schedule` (a thread per step), then whatever is left of each thread in turn. */
void host_run(const struct scenario *s, const u8 *schedule, u32 length, struct violation *found)
{
	machine_begin(s);
	for (u32 i = 0; i < length; i++)
		machine_step(schedule[i] % s->threads, s->ops[schedule[i] % s->threads], s->counts[schedule[i] % s->threads]);
	for (u32 thread = 0; thread < s->threads; thread++)
		while (machine_step(thread, s->ops[thread], s->counts[thread]))
			;
	machine_end();
	*found = wrong;
}

struct search {
	u64 tried, violations;
	u32 length, switches;
	struct violation first; /* of the schedule with the fewest switches of threads */
	u8 schedule[128];
};

struct cursor { u32 op, step; };

struct explorer {
	const struct scenario *s;
	struct search *search;
	struct cursor at[SIM_THREADS];
	u32 left[SIM_THREADS];
	u64 limit;
	u8 schedule[128];
	u32 depth;
};

static bool explorer_may(struct explorer *e, u32 thread)
{
	if (!e->left[thread])
		return false;
	const struct op *op = &e->s->ops[thread][e->at[thread].op];
	return !op->after || e->at[thread].step || e->at[op->after - 1].op > op->until;
}

static void explorer_move(struct explorer *e, u32 thread)
{
	struct cursor *c = &e->at[thread];
	if (op_steps[e->s->ops[thread][c->op].kind][++c->step] == STEP_END) {
		c->op++;
		c->step = 0;
	}
	e->left[thread]--;
	e->schedule[e->depth++] = (u8)thread;
}

static void explorer_try(struct explorer *e)
{
	struct violation found;
	e->search->tried++;
	host_run(e->s, e->schedule, e->depth, &found);
	if (!found.kind)
		return;
	u32 switches = 0;
	for (u32 i = 1; i < e->depth; i++)
		switches += e->schedule[i] != e->schedule[i - 1];
	if (!e->search->violations || switches < e->search->switches) {
		e->search->first = found;
		e->search->switches = switches;
		e->search->length = e->depth;
		__builtin_memcpy(e->search->schedule, e->schedule, e->depth);
	}
	e->search->violations++;
}

static void explorer_all(struct explorer *e)
{
	bool moved = false;
	for (u32 thread = 0; thread < e->s->threads && e->search->tried < e->limit; thread++) {
		if (!explorer_may(e, thread))
			continue;
		struct cursor before = e->at[thread];
		moved = true;
		explorer_move(e, thread);
		explorer_all(e);
		e->at[thread] = before;
		e->left[thread]++;
		e->depth--;
	}
	if (!moved && e->search->tried < e->limit)
		explorer_try(e);
}

static void explorer_begin(struct explorer *e, const struct scenario *s, struct search *search)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->s = s;
	e->search = search;
	for (u32 thread = 0; thread < s->threads; thread++)
		for (u32 i = 0; i < s->counts[thread]; i++)
			for (u32 step = 0; op_steps[s->ops[thread][i].kind][step] != STEP_END; step++)
				e->left[thread]++;
}

/* Every order, `limit` at most. */
void host_all(const struct scenario *s, u64 limit, struct search *search)
{
	struct explorer e;
	explorer_begin(&e, s, search);
	e.limit = limit;
	explorer_all(&e);
}

/* `count` orders at random, every one as likely as the others (where no op waits for another). */
void host_some(const struct scenario *s, u64 count, u64 seed, struct search *search)
{
	struct explorer begin, e;
	u64 random = seed * 2862933555777941757ull + 3037000493ull;
	explorer_begin(&begin, s, search);
	while (count--) {
		e = begin;
		for (;;) {
			u32 total = 0;
			for (u32 thread = 0; thread < s->threads; thread++)
				total += explorer_may(&e, thread) ? e.left[thread] : 0;
			if (!total)
				break;
			random ^= random << 13, random ^= random >> 7, random ^= random << 17;
			u32 pick = (u32)(random >> 33) % total, thread = 0;
			for (;; thread++) {
				u32 weight = explorer_may(&e, thread) ? e.left[thread] : 0;
				if (pick < weight)
					break;
				pick -= weight;
			}
			explorer_move(&e, thread);
		}
		explorer_try(&e);
	}
}

void host_look_for(u32 kind, u64 whats) { not_looked_for[kind] = ~whats; }
const u8 *host_told(u32 *bytes)
{
	*bytes = run_used;
	return run_ring;
}
/* The lifetime of a destroy of the run; null when there are no more. */
const u8 *host_lifetime(u32 index)
{
	u64 at = lifetimes_before + index;
	return at < lifetime_heads_values[0].written ? (const u8 *)&lifetimes_values[at & (AF_LIFE_RECORDS - 1)] : 0;
}
u32 host_sizes(u32 which)
{
	return which == 0 ? sizeof(struct scenario) : which == 1 ? sizeof(struct search) : OP_KINDS;
}
