/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Process life: fork, exec, exit, fatal signals and the page fault just before one.
 */
static inline __attribute__((always_inline)) void af_lifecycle_out(u16 kind, u32 tgid, u32 arg, struct af_path_key *path)
{
	struct af_lifecycle *l = urgent.ringbuf_reserve(sizeof(struct af_lifecycle));
	if (!l) {
		af_count(AF_C_URGENT_LOST);
		return;
	}
	__builtin_memset(l, 0, sizeof(*l));
	l->head.type = AF_URGENT_LIFECYCLE;
	l->head.version = AF_ABI_VERSION;
	l->head.size = sizeof(*l);
	l->head.what = kind;
	l->trigger.kind = kind;
	l->trigger.ts = bpf_ktime_get_ns();
	l->trigger.enter = l->trigger.ts;
	l->trigger.tgid = tgid;
	l->trigger.tid = (u32)bpf_get_current_pid_tgid();
	l->trigger.arg = arg;
	bpf_get_current_comm(l->comm, sizeof(l->comm));
	if (path)
		bpf_probe_read_kernel(l->path, sizeof(l->path), path->path);
	urgent.ringbuf_submit(l, 0);
}

static inline __attribute__((always_inline)) void af_fork_ended(u32 child)
{
	u32 *parent = children.lookup(&child);
	if (!parent)
		return;
	u32 tgid = *parent;
	children.delete(&child);
	struct af_target *target = targets.lookup(&tgid);
	if (!target)
		return;
	if (target->forks)
		target->forks -= 1;
	u64 now = bpf_ktime_get_ns();
	af_record(AF_FORK_ENDED, 0, now, now, tgid, 0, -1, -1, 0, child, -1);
	af_lifecycle_out(AF_FORK_ENDED, tgid, child, 0);
}

int af_newtask(struct af_tp_newtask *ctx)
{
	struct af_target *target = af_target_now();
	/* CLONE_FILES 0x400 shares the table itself, CLONE_THREAD 0x10000 is a thread (clone(2)) */
	if (!target || (ctx->clone_flags & 0x10400))
		return 0;
	u32 child = ctx->pid, tgid = af_tgid();
	if (children.update(&child, &tgid))
		return 0;
	target->forks += 1;
	u64 now = bpf_ktime_get_ns();
	af_record(AF_FORKED, 0, now, now, 0, 0, -1, -1, 0, child, -1);
	af_lifecycle_out(AF_FORKED, tgid, child, 0);
	return 0;
}

int af_execed(struct af_tp_exec *ctx)
{
	u32 tgid = af_tgid();
	int zero = 0;
	af_fork_ended(tgid);
	struct af_scratch *s = scratch.lookup(&zero);
	if (!s)
		return 0;
	__builtin_memset(&s->path, 0, sizeof(s->path));
	bpf_probe_read_kernel_str(s->path.path, sizeof(s->path.path), (void *)ctx + (ctx->filename_loc & 0xffff));
	struct af_target *target = targets.lookup(&tgid);
	u32 *wanted = exec_paths.lookup(&s->path);
	if (target) {
		targets.delete(&tgid);
		u64 now = bpf_ktime_get_ns();
		af_record(AF_EXECED, 0, now, now, 0, 0, -1, -1, 0, 0, -1);
	}
	if (wanted) {
		struct af_target fresh = {.armed = bpf_ktime_get_ns()};
		targets.update(&tgid, &fresh);
	}
	if (target || wanted)
		af_lifecycle_out(AF_EXECED, tgid, wanted ? 1 : 0, &s->path);
	return 0;
}

int af_exited(struct af_tp_exit *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tgid = id >> 32;
	if (tgid == (u32)id)
		af_fork_ended(tgid);
	if (!targets.lookup(&tgid))
		return 0;
	threads.delete(&id);
	return 0;
}

int af_fault(struct af_tp_fault *ctx)
{
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	t->fault_addr = ctx->address;
	t->fault_ip = ctx->ip;
	t->fault_ts = bpf_ktime_get_ns();
	return 0;
}

int af_signaled(struct af_tp_signal *ctx)
{
	s32 sig = ctx->sig;
	/* SIGILL 4, SIGABRT 6, SIGBUS 7, SIGFPE 8, SIGSEGV 11 (signal(7)), sent by the thread to itself */
	if (sig != 4 && sig != 6 && sig != 7 && sig != 8 && sig != 11)
		return 0;
	u64 id = bpf_get_current_pid_tgid();
	if (ctx->pid != (s32)(u32)id && ctx->pid != (s32)(id >> 32))
		return 0;
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t || t->crashed >= 4)
		return 0;
	t->crashed += 1;
	u64 now = bpf_ktime_get_ns();
	struct af_crash *c = urgent.ringbuf_reserve(sizeof(struct af_crash));
	if (!c) {
		af_count(AF_C_URGENT_LOST);
		return 0;
	}
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
	bpf_probe_read_kernel(c->regs, sizeof(c->regs), regs);
	u64 ip = 0, sp = 0;
	bpf_probe_read_kernel(&ip, 8, (void *)((u64)regs + __builtin_offsetof(struct pt_regs, ip)));
	bpf_probe_read_kernel(&sp, 8, (void *)((u64)regs + __builtin_offsetof(struct pt_regs, sp)));
	bool faulted = (sig == 11 || sig == 7) && t->fault_ts && t->fault_ip == ip;
	u64 addr = faulted ? t->fault_addr : 0;
	s32 stack = af_stack_id(ctx);
	c->head.type = AF_URGENT_CRASH;
	c->head.version = AF_ABI_VERSION;
	c->head.size = sizeof(*c);
	c->head.what = AF_SIGNALED;
	c->head.nbytes = 0;
	c->trigger.seq = 0;
	c->trigger.kind = AF_SIGNALED;
	c->trigger.flags = faulted ? 0 : AF_F_UNKNOWN;
	c->trigger.ts = now;
	c->trigger.addr = addr;
	c->trigger.tgid = id >> 32;
	c->trigger.tid = (u32)id;
	c->trigger.gen = 0;
	c->trigger.fd = -1;
	c->trigger.epfd = t->wait_epfd;
	c->trigger.ret = 0;
	c->trigger.arg = sig;
	c->trigger.stack = stack;
	c->fault_addr = addr;
	/* A probed instruction that faults does so in its out-of-line copy: the probe knows where it is from. */
	if (ip >= AF_XOL_START && ip < AF_XOL_END && t->hit_ip)
		ip = t->hit_ip;
	c->fault_ip = ip;
	c->trigger.enter = ip;
	c->si_code = ctx->code;
	c->batch = t->batch;
	bpf_get_current_comm(c->comm, sizeof(c->comm));
	if (!bpf_probe_read_user(c->stack, AF_CRASH_STACK, (void *)sp)) {
		c->head.nbytes = AF_CRASH_STACK;
	} else if (!bpf_probe_read_user(c->stack, 512, (void *)sp)) {
		c->head.nbytes = 512;
	} else {
		af_count(AF_C_READ_FAULT);
	}
	urgent.ringbuf_submit(c, 0);
	af_record(AF_SIGNALED, 0, now, ip, addr, 0, -1, t->wait_epfd, ctx->code, sig, stack);
	return 0;
}
