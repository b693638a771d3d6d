/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Plays a program's threads over the simulated kernel, one step at a time: a probe program at a call's entry, its
 * effect, a probe program at its exit. Between any two steps another thread may go on.
 */
enum op_kind {
	OP_SOCKET, OP_EPOLL, OP_ADD, OP_MOD, OP_DEL, OP_CLOSE, OP_DUP, OP_DUP2, OP_WAIT, OP_CREATE, OP_DESTROY, OP_RETURN,
	OP_DISPATCH, OP_READY, OP_DRAIN, OP_FORK, OP_CHILD_EXIT, OP_SEND, OP_RECEIVED, OP_CLOSE_RANGE, OP_SLOW_CLOSE,
	OP_LATE_CLOSE, OP_KINDS
};

/* What a step of an op does. */
enum step_kind { STEP_ENTER, STEP_EFFECT, STEP_EXIT, STEP_HIT, STEP_TABLE, STEP_PUT, STEP_END };

#define MOST_STEPS 4
static const u8 op_steps[OP_KINDS][MOST_STEPS + 1] = {
	[OP_SOCKET] = {STEP_EFFECT, STEP_END},
	[OP_EPOLL] = {STEP_EFFECT, STEP_EXIT, STEP_END},
	[OP_ADD] = {STEP_ENTER, STEP_EFFECT, STEP_EXIT, STEP_END},
	[OP_MOD] = {STEP_ENTER, STEP_EFFECT, STEP_EXIT, STEP_END},
	[OP_DEL] = {STEP_ENTER, STEP_EFFECT, STEP_EXIT, STEP_END},
	[OP_CLOSE] = {STEP_ENTER, STEP_EFFECT, STEP_EXIT, STEP_END},
	/* the number is free before the file is gone (close_fd_get_file, then __fput_sync) */
	[OP_SLOW_CLOSE] = {STEP_ENTER, STEP_TABLE, STEP_PUT, STEP_EXIT, STEP_END},
	/* before Linux 6.6: task work, after the exit tracepoint */
	[OP_LATE_CLOSE] = {STEP_ENTER, STEP_TABLE, STEP_EXIT, STEP_PUT, STEP_END},
	[OP_DUP] = {STEP_EFFECT, STEP_EXIT, STEP_END},
	[OP_DUP2] = {STEP_ENTER, STEP_EFFECT, STEP_EXIT, STEP_END},
	[OP_WAIT] = {STEP_ENTER, STEP_EFFECT, STEP_EXIT, STEP_END},
	[OP_CREATE] = {STEP_HIT, STEP_END},
	[OP_DESTROY] = {STEP_HIT, STEP_END},
	[OP_RETURN] = {STEP_EFFECT, STEP_END},
	[OP_DISPATCH] = {STEP_HIT, STEP_END},
	[OP_READY] = {STEP_EFFECT, STEP_END},
	[OP_DRAIN] = {STEP_EFFECT, STEP_END},
	[OP_FORK] = {STEP_EFFECT, STEP_HIT, STEP_END},
	[OP_CHILD_EXIT] = {STEP_HIT, STEP_EFFECT, STEP_END},
	[OP_SEND] = {STEP_EFFECT, STEP_END},
	[OP_RECEIVED] = {STEP_EFFECT, STEP_END},
	[OP_CLOSE_RANGE] = {STEP_EFFECT, STEP_EXIT, STEP_END},
};

/* a, b: variables that hold descriptor numbers; a of CREATE, DESTROY, DISPATCH and c of ADD, MOD: slot;
 * d: 0 level, 1 edge, 2 one-shot; b of WAIT: most events. after: 1 + thread whose op `until` must be through before */
struct op { u8 kind, a, b, c, d, after, until, gap; };

#define MOST_OPS 16
#define MOST_DEPTH 6
struct scenario {
	u32 threads, prepared;
	u32 counts[SIM_THREADS];
	struct op prepare[MOST_OPS];
	struct op ops[SIM_THREADS][MOST_OPS];
};

struct player {
	s32 closed_fd;
	u32 run, bad; /* a close in a run over numbers; one that failed there */
	u32 op, step, depth, calls;
	s32 fd, epfd, ret, slot;
	u32 life;
	u8 loose, noted, adding; /* adding: an ADD that was seen to begin; 1 before its effect, 2 after it */
	struct sim_file *file;   /* under the number when its ADD began */
	struct sim_file *meant;  /* and when any epoll_ctl began */
	struct sim_file *putting;
	s32 frames[MOST_DEPTH];
	u32 control;     /* the epoll_ctl that it is in; 0 none */
	u32 entered;     /* step of the entry of its call */
	u32 effect;      /* and of its effect */
	u32 reg;         /* the one that its ADD made */
	u64 closing;     /* registrations under the number that it closes */
	u32 batch[MOST_DEPTH + 1]; /* slots that it was told of by its wait of that depth */
	s32 batch_epfd[MOST_DEPTH + 1];
	u32 told_by[SIM_EVENTS]; /* registrations that the wait under way tells of */
	u8 missed; /* a MOD that found nothing, and no ADD yet */
};

static struct player players[SIM_THREADS];
static s32 vars[SIM_VARS];
static u32 var_serial[SIM_VARS];
static u32 playing; /* the thread */

/* -- probe programs */

static void *sim_jump[5];
static u32 sim_calls, sim_index;
static int (*const sim_chain[])(void *) = {(int (*)(void *))af_wait_more, (int (*)(void *))af_report,
					   (int (*)(void *))af_settle_more};

static __attribute__((noinline)) void sim_tail_call(void *ctx, int index)
{
	if (++sim_calls > 33)
		return;
	sim_index = index;
	__builtin_longjmp(sim_jump, 1);
}

static __attribute__((noinline)) void sim_run_one(int (*program)(void *), void *ctx)
{
	program(ctx);
}

static __attribute__((noinline)) void probe_run(void *program, void *ctx)
{
	static int (*next)(void *);
	static void *context;
	next = (int (*)(void *))program;
	context = ctx;
	sim_calls = 0;
	if (__builtin_setjmp(sim_jump))
		next = sim_chain[sim_index];
	sim_run_one(next, context);
}

static void probe_enter(void *program, u64 a, u64 b, u64 c, u64 d)
{
	struct af_sys_enter ctx = {.args = {a, b, c, d}};
	probe_run(program, &ctx);
}

static void probe_exit(void *program, s64 ret)
{
	struct af_sys_exit ctx = {.ret = ret};
	probe_run(program, &ctx);
}

/* -- what the oracle asks of the players */

static void player_adds(struct truth_reg *reg)
{
	struct player *p = &players[playing];
	reg->noted = p->noted && reg->file == p->file;
	reg->begun = p->entered;
	reg->loose = p->loose;
	reg->life = p->adding ? p->life : reg->slot >= 0 ? truth.slots[reg->slot].life : 0;
	p->reg = (u32)(reg - truth.regs);
}

/* A create gives out the slot that is being added. */
static void player_adopted(s32 slot, u32 life)
{
	for (u32 i = 0; i < SIM_THREADS; i++) {
		if (players[i].adding != 1 || players[i].slot != slot || !players[i].loose)
			continue;
		players[i].loose = 0;
		players[i].life = life;
	}
}

static bool player_is_adding(s32 slot, struct af_reg *reg)
{
	for (u32 i = 0; i < SIM_THREADS; i++)
		if (players[i].adding && players[i].slot == slot && (!reg || players[i].fd == reg->fd))
			return true;
	return false;
}

/* Does somebody hold a batch that names the slot? */
static bool player_in_batch(s32 slot)
{
	for (u32 i = 0; i < SIM_THREADS; i++)
		for (u32 depth = 0; depth <= MOST_DEPTH; depth++)
			if (players[i].batch[depth] & 1u << slot)
				return true;
	return false;
}
