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
