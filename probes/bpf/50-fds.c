/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * What happens to file descriptors: close, dup, accept, and reads while a spin is suspected.
 */
static inline __attribute__((always_inline)) void af_close_begun(void *ctx, struct af_thread *t, u32 tgid, s32 fd)
{
	t->fd = fd;
	t->stack = -1;
	/* now, while the number is still this close's: afterwards it may be anybody's */
	t->known = af_fd_take(t, tgid, fd, &t->was);
	if (!t->known)
		return;
	t->ip = af_user_ip();
	t->stack = af_stack_id(ctx);
	u64 userdata = 0;
	u32 gen = 0;
	if (af_reg_alive(&t->reg)) {
		struct af_reg *reg = af_reg_find(tgid, t->was.epfd, fd);
		if (reg)
			reg->flags |= AF_R_ENDING;
		userdata = t->reg.userdata;
		gen = t->reg.gen;
	}
	af_record(AF_CLOSE_BEGUN, 0, t->enter, t->enter, userdata, gen, fd, t->was.epfd, 0, 0, t->stack);
}

/* It is not open, says the kernel: its close was not seen, and whoever is given the number will find that out. */
static inline __attribute__((always_inline)) void af_fd_untake(u32 tgid, s32 fd)
{
	struct af_fd_key key = {.tgid = tgid, .fd = fd};
	struct af_fd *f = fds.lookup(&key);
	if (f)
		f->closed = 0;
}

static inline __attribute__((always_inline)) void af_close_ended(void *ctx, struct af_target *target, struct af_thread *t, u32 tgid,
					     s32 fd, s32 ret, u64 now)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();
	if (ret == AF_EBADF) {
		if (t->known)
			af_fd_untake(tgid, fd);
		s32 stack = af_stack_id(ctx);
		af_record(AF_CLOSED, AF_F_UNKNOWN, now, t->enter, 0, 0, fd, -1, ret, 0, stack);
		struct af_trigger_args a = {.ts = now, .enter = t->enter, .addr = 0, .gen = 0, .fd = fd, .epfd = -1,
					    .ret = ret, .arg = 0, .stack = stack, .kind = AF_CLOSED};
		af_suspect(AF_SUSPECT_BAD_CLOSE, &a, t, 0, 0, 0);
		return;
	}
	if (!t->known)
		return;
	bool registered = t->reg.state != AF_REG_NONE;
	u64 userdata = registered ? t->reg.userdata : 0;
	u32 gen = registered ? t->reg.gen : 0;
	struct af_at at;
	af_at_set(&at, t->enter, now, t->ip, tid, t->stack);
	af_record(AF_CLOSED, 0, now, t->enter, userdata, gen, fd, t->was.epfd, ret, 0, t->stack);
	af_close_effect(ctx, target, t, tgid, fd, &t->was, &at);
}

int af_enter_close(struct af_sys_enter *ctx)
{
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	t->call = AF_CALL_CLOSE;
	t->enter = bpf_ktime_get_ns();
	af_close_begun(ctx, t, af_tgid(), (s32)ctx->args[0]);
	return 0;
}

int af_exit_close(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t || t->call != AF_CALL_CLOSE)
		return 0;
	t->call = AF_CALL_NONE;
	af_close_ended(ctx, target, t, af_tgid(), t->fd, ctx->ret, bpf_ktime_get_ns());
	return 0;
}

/* close_range(2) over a span: registered fds in it are few; the span is looked at up to a limit. */
#define AF_RANGE_LIMIT 8

int af_exit_close_range(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t || t->call != AF_CALL_CLOSE)
		return 0;
	t->call = AF_CALL_NONE;
	if (ctx->ret)
		return 0;
	u32 tgid = af_tgid();
	u64 now = bpf_ktime_get_ns();
	for (u32 i = 0; i < AF_RANGE_LIMIT; i++) {
		s32 fd = t->fd + i;
		if (fd > t->newfd)
			break;
		if (!af_fd_take(t, tgid, fd, &t->was))
			continue;
		struct af_at at;
		af_at_set(&at, t->enter, now, t->ip, (u32)bpf_get_current_pid_tgid(), t->stack);
		af_record(AF_CLOSED, 0, now, t->enter, 0, 0, fd, t->was.epfd, 0, 1, t->stack);
		af_close_effect(ctx, target, t, tgid, fd, &t->was, &at);
	}
	if ((u32)t->newfd - (u32)t->fd >= AF_RANGE_LIMIT)
		af_count(AF_C_RANGE_TRUNCATED);
	return 0;
}

int af_enter_close_range(struct af_sys_enter *ctx)
{
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	t->call = AF_CALL_CLOSE;
	t->enter = bpf_ktime_get_ns();
	t->fd = (s32)ctx->args[0];
	t->newfd = ctx->args[1] > 0x7fffffff ? 0x7fffffff : (s32)ctx->args[1];
	t->ip = af_user_ip();
	t->stack = af_stack_id(ctx);
	if (ctx->args[2] & 4) /* CLOSE_RANGE_CLOEXEC only marks */
		t->call = AF_CALL_NONE;
	return 0;
}

/* dup2(2) and dup3(2) close the new number first when it is open */
static inline __attribute__((always_inline)) int af_dup_enter(void *ctx, u32 call, s32 oldfd, s32 newfd)
{
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	t->call = call;
	t->enter = bpf_ktime_get_ns();
	t->epfd = oldfd;
	t->newfd = newfd;
	return 0;
}

int af_enter_dup(struct af_sys_enter *ctx) { return af_dup_enter(ctx, AF_CALL_DUP, (s32)ctx->args[0], -1); }

int af_enter_dup2(struct af_sys_enter *ctx)
{
	return af_dup_enter(ctx, AF_CALL_DUP2, (s32)ctx->args[0], (s32)ctx->args[1]);
}

int af_enter_fcntl(struct af_sys_enter *ctx)
{
	/* F_DUPFD 0, F_DUPFD_CLOEXEC 1030 (fcntl(2)) */
	if (ctx->args[1] != 0 && ctx->args[1] != 1030)
		return 0;
	return af_dup_enter(ctx, AF_CALL_DUP, (s32)ctx->args[0], -1);
}

static inline __attribute__((always_inline)) void af_dupped(u32 tgid, s32 oldfd, s32 newfd, u64 now)
{
	struct af_fd_key okey = {.tgid = tgid, .fd = oldfd};
	struct af_fd_key nkey = {.tgid = tgid, .fd = newfd};
	struct af_fd *f = fds.lookup(&okey);
	struct af_desc_key dkey = {.tgid = tgid};
	if (!f || f->closed) {
		struct af_fd fresh = {.epfd = -1};
		if (fds.update(&okey, &fresh)) {
			af_count(AF_C_FDS_FULL);
			return;
		}
		f = fds.lookup(&okey);
		if (!f)
			return;
	}
	if (!f->desc) {
		struct af_desc one = {.refs = 1};
		/* two CPUs may dup within the same nanosecond */
		dkey.desc = now << 8 | (bpf_get_smp_processor_id() & 255);
		if (descs.update(&dkey, &one)) {
			af_count(AF_C_DESCS_FULL);
			return;
		}
		f->desc = dkey.desc;
	}
	dkey.desc = f->desc;
	struct af_desc *d = descs.lookup(&dkey);
	if (!d)
		return;
	__sync_fetch_and_add(&d->refs, 1);
	struct af_fd copy = {.desc = dkey.desc, .epfd = -1};
	if (fds.update(&nkey, &copy))
		af_count(AF_C_FDS_FULL);
	if (f->epfd >= 0) {
		struct af_reg *reg = af_reg_find(tgid, f->epfd, oldfd);
		if (af_reg_alive(reg))
			reg->flags |= AF_R_SHARED;
	}
}

int af_exit_dup(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t || (t->call != AF_CALL_DUP && t->call != AF_CALL_DUP2))
		return 0;
	u32 call = t->call;
	t->call = AF_CALL_NONE;
	u32 tgid = af_tgid();
	u64 now = bpf_ktime_get_ns();
	s32 newfd = ctx->ret;
	if (newfd < 0 || newfd == t->epfd)
		return 0;
	if (call == AF_CALL_DUP2) { /* only now is it known that it closed anything; nobody else got the number */
		af_close_begun(ctx, t, tgid, newfd);
		af_close_ended(ctx, target, t, tgid, newfd, 0, now);
	}
	af_fd_reused(ctx, target, t, tgid, newfd, now);
	af_record(AF_DUPPED, 0, now, t->enter, 0, 0, t->epfd, -1, newfd, 0, -1);
	af_dupped(tgid, t->epfd, newfd, now);
	return 0;
}

int af_enter_accept(struct af_sys_enter *ctx) { return af_call_enter(AF_CALL_ACCEPT, -1, (s32)ctx->args[0]); }

int af_exit_accept(struct af_sys_exit *ctx)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t || t->call != AF_CALL_ACCEPT)
		return 0;
	t->call = AF_CALL_NONE;
	if (ctx->ret < 0)
		return 0;
	u64 now = bpf_ktime_get_ns();
	af_record(AF_ACCEPTED, 0, now, t->enter, 0, 0, t->fd, -1, ctx->ret, 0, -1);
	af_fd_reused(ctx, target, t, af_tgid(), ctx->ret, now);
	return 0;
}

/* A read of the fd says that somebody works on the event: the run of repeats ends. */
int af_enter_read(struct af_sys_enter *ctx)
{
	struct af_target *target = af_target_now();
	if (!target || !target->watch_reads)
		return 0;
	s32 fd = (s32)ctx->args[0];
	u32 bit = 1u << (fd & 31);
	if (!(target->hot_fds & bit))
		return 0;
	u64 now = bpf_ktime_get_ns();
	if (target->watch_reads < now) {
		target->watch_reads = 0;
		target->hot_fds = 0;
		return 0;
	}
	u32 tgid = af_tgid();
	struct af_fd_key key = {.tgid = tgid, .fd = fd};
	struct af_fd *f = fds.lookup(&key);
	if (!f || f->epfd < 0 || f->closed)
		return 0;
	struct af_reg *reg = af_reg_find(tgid, f->epfd, key.fd);
	if (!reg)
		return 0;
	struct af_slot *slot = af_slot_find(tgid, reg->slot);
	if (!slot || slot->gen != reg->gen || slot->consecutive < AF_WATCH_READS_AFTER)
		return 0;
	slot->consecutive = 0;
	target->hot_fds &= ~bit; /* another fd of this bit sets it again with its next delivery */
	af_record(AF_READ, 0, now, now, slot->addr, slot->gen, key.fd, f->epfd, 0, 0, -1);
	return 0;
}
