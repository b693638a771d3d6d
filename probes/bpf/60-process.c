/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Process life: fork, exec, exit, fatal signals and the page fault just before one.
 */
AF_FN void af_lifecycle_out(u16 kind, u32 tgid, u64 addr, u32 arg, struct af_path_key *path)
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
	l->trigger.addr = addr;
	l->trigger.tgid = tgid;
	l->trigger.tid = (u32)bpf_get_current_pid_tgid();
	l->trigger.arg = arg;
	bpf_get_current_comm(l->comm, sizeof(l->comm));
	if (path)
		bpf_probe_read_kernel(l->path, sizeof(l->path), path->path);
	urgent.ringbuf_submit(l, 0);
}

AF_FN void af_fork_ended(u32 child)
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
	af_lifecycle_out(AF_FORK_ENDED, tgid, 0, child, 0);
}

AF_FN u32 af_epoch(u64 now)
{
	return (u32)(now >> 10) | 1; /* never 0, and not the same twice for one process */
}

int af_newtask(void *ctx)
{
	struct af_target *target = af_target_now();
	u64 clone_flags = *(u64 *)(ctx + AF_TP_NEWTASK_FLAGS);
	if (!target || (clone_flags & 0x10000)) /* CLONE_THREAD: a thread (clone(2)) */
		return 0;
	u32 child = *(u32 *)(ctx + AF_TP_NEWTASK_PID), tgid = af_tgid();
	u64 now = bpf_ktime_get_ns();
	if (clone_flags & 0x400) { /* CLONE_FILES: it shares the table itself, and is seen as little as io_uring is */
		target->flags |= AF_T_TABLE_SHARED;
		af_count(AF_C_SHARED_TABLES);
	} else if (!children.update(&child, &tgid)) {
		target->forks += 1;
		target->last_child = child;
		target->forked_at = now;
	}
	/* a worker of a watched program is watched from its first instruction; CLONE_VM (a vfork) runs no server */
	if ((target->flags & AF_T_FOLLOW) && !(clone_flags & 0x100)) {
		struct af_target fresh = {.armed = now, .epoch = af_epoch(now),
					  .flags = AF_T_FOLLOW | AF_T_LATE};
		targets.update(&child, &fresh);
	}
	af_record(AF_FORKED, 0, now, now, 0, 0, -1, -1, 0, child, -1);
	af_lifecycle_out(AF_FORKED, tgid, clone_flags, child, 0);
	return 0;
}

/* The program that is executed may go by another name than the one that is watched: relative, a link, /proc/self/exe.
 * Its file is the same: at `path` as user space writes it, that no path is equal to. */
AF_FN u32 *af_wanted_file(struct af_path_key *key)
{
#if AF_MM_EXE
	u64 file = af_word(af_word((u64)bpf_get_current_task() + AF_TASK_MM) + AF_MM_EXE);
	u64 inode = file ? af_word(file + AF_FILE_INODE) : 0;
	if (!inode)
		return 0;
	u64 number = af_word(inode + AF_INODE_INO);
	u64 device = (u32)af_word(af_word(inode + AF_INODE_SB) + AF_SB_DEV);
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->path + 8, &number, 8);
	__builtin_memcpy(key->path + 16, &device, 8);
	return exec_paths.lookup(key);
#else
	return 0;
#endif
}

int af_execed(void *ctx)
{
	u32 tgid = af_tgid();
	int zero = 0;
	af_fork_ended(tgid);
	struct af_scratch *s = scratch.lookup(&zero);
	if (!s)
		return 0;
	__builtin_memset(&s->path, 0, sizeof(s->path));
	u32 where = *(u32 *)(ctx + AF_TP_EXEC_FILENAME) & 0xffff;
	bpf_probe_read_kernel_str(s->path.path, sizeof(s->path.path), ctx + where);
	struct af_target *target = targets.lookup(&tgid);
	u32 *wanted = exec_paths.lookup(&s->path);
	if (!wanted)
		wanted = af_wanted_file(&s->file);
	u64 now = bpf_ktime_get_ns();
	if (target) {
		if (!wanted && !(target->flags & AF_T_FOLLOW))
			targets.delete(&tgid);
		af_record(AF_EXECED, 0, now, now, 0, 0, -1, -1, 0, 0, -1);
	}
	/* a program that executes itself goes on being watched at once; another one is let go by user space */
	bool follow = wanted || (target && (target->flags & AF_T_FOLLOW));
	if (follow) {
		struct af_target fresh = {.armed = now, .epoch = af_epoch(now), .flags = AF_T_FOLLOW};
		targets.update(&tgid, &fresh);
	}
	if (target || wanted)
		af_lifecycle_out(AF_EXECED, tgid, 0, follow ? 1 : 0, &s->path);
	return 0;
}

/* How a process ended, as wait(2) will say it: said by its last thread (do_exit lowers signal->live and sets exit_code
 * before this tracepoint; wait_task_zombie takes the group's code, or else the leader's). */
AF_FN void af_ended(u32 tgid)
{
#if AF_ASK
	u64 task = bpf_get_current_task(), signal = af_word(task + AF_TASK_SIGNAL);
	if ((u32)af_word(signal + AF_SIGNAL_LIVE))
		return;
	u32 status = (u32)af_word(signal + AF_SIGNAL_FLAGS) & 4 /* SIGNAL_GROUP_EXIT */
			     ? (u32)af_word(signal + AF_SIGNAL_EXIT)
			     : (u32)af_word(af_word(task + AF_TASK_LEADER) + AF_TASK_EXIT);
	af_lifecycle_out(AF_EXITED, tgid, 0, status, 0);
#endif
}

int af_exited(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tgid = id >> 32;
	if (tgid == (u32)id)
		af_fork_ended(tgid);
	if (!targets.lookup(&tgid))
		return 0;
	af_ended(tgid);
	struct af_thread *t = threads.lookup(&id);
	if (t) { /* it did something that a report may tell */
		struct af_name name = {};
		bpf_get_current_comm(&name.comm, sizeof(name.comm));
		names.update(&id, &name);
		u64 ep = t->wait.ep;
		u32 *waiter = ep ? waiters.lookup(&ep) : 0;
		if (waiter && *waiter == (u32)id)
			waiters.delete(&ep); /* nobody waits there any more */
	}
	if (t && t->bad.at && (t->closed_up > 1 || t->closed_down > 1)) {
		t->bad.at = 0; /* one of a loop over numbers, which the end of the thread has ended */
		af_count(AF_C_BAD_CLOSES);
	}
	if (t && (t->pending_first != t->pending_next || t->bad.at)) {
		/* a thread that ends is through with what it destroyed; its entry goes with the last of that */
		t->exiting = 1;
		t->call = AF_CALL_WAIT;
		t->missed_count = 0;
		t->pending_until = t->pending_next;
		prog.call(ctx, AF_PROG_SETTLE);
	}
	threads.delete(&id);
	return 0;
}

/* Only where the kernel cannot be asked at the signal: every page fault of every process pays for it. */
int af_fault(void *ctx)
{
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	t->fault_addr = *(u64 *)(ctx + AF_TP_FAULT_ADDRESS);
	t->fault_ip = *(u64 *)(ctx + AF_TP_FAULT_IP);
	t->fault_ts = bpf_ktime_get_ns();
	return 0;
}

/* io_uring works on descriptors without system calls of the process: counted, and every finding that depends on who
 * closed or removed says so. The kernel is asked all the same. */
int af_io_uring(void *ctx)
{
	if (af_target_now())
		af_count(AF_C_IO_URING);
	return 0;
}

/* From outside: judge what a thread that does not wait has put off. args: tgid and epoch, the slot's address. */
int af_settle_now(struct af_settle_args *ctx)
{
	u32 tgid = ctx->tgid_epoch >> 32, epoch = (u32)ctx->tgid_epoch;
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	struct af_slot *slot = af_slot_of(tgid, epoch, ctx->addr);
	struct af_target *target = targets.lookup(&tgid);
	if (slot && s && target && target->epoch == epoch)
		af_settle(slot, s, true);
	return 0;
}
