/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Calls that consume from a file or produce on it: attached only while a spin is suspected. A call that moved nothing
 * (the end of the stream again and again, or EAGAIN while there is room to write) is no progress. `only`: of events of
 * these kinds; 0: of all.
 */
#define AF_EAGAIN (-11)
#define AF_PROGRESS_ITEMS 64 /* registrations of one file: of a listener, in the instances of many loops */
#define AF_READABLE 0x41u /* EPOLLIN, EPOLLRDNORM */
int af_progress_of(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	if (!s)
		return 0;
	s32 fd = s->fds[0];
#if AF_ASK
	u64 file = af_file(fd), node = af_first_item(file);
	AF_LOOP
	for (u32 i = 0; i < AF_PROGRESS_ITEMS; i++) {
		if (!node)
			break;
		/* of the process that registered it: a child may read what its parent is told of */
		u64 item = node - AF_ITEM_LINK;
		struct af_filefd ffd = {};
		bpf_probe_read_kernel(&ffd, sizeof(ffd), (void *)(item + AF_ITEM_FFD));
		struct af_reg *note = af_note(af_word(item + AF_ITEM_EP), file, ffd.fd);
		node = af_word(node);
		struct af_target *target = note ? 0 : af_target_now(); /* made before the attach, and not used since */
		u64 userdata = target ? af_word(item + AF_ITEM_EVENT + 4) : 0;
		struct af_slot *slot = note ? af_note_slot(note) : 0;
		if (target)
			slot = af_slot_find(target, af_slot_behind(target, userdata, false));
		if (!slot || !slot->idle || (AF_KEPT(s->only) && (slot->last_events & ~AF_KEPT(s->only))))
			continue;
		/* a little progress among very many deliveries is that of another descriptor, or direction */
		slot->progressed += 1;
		if (slot->idle > AF_WASTED * (u64)slot->progressed)
			continue;
		u64 now = bpf_ktime_get_ns();
		if (slot->idle >= AF_QUIET_AFTER)
			af_record(AF_PROGRESS, 0, now, now, slot->addr, slot->gen, fd, slot->epfd, 0,
				  (u32)slot->idle, -1);
		slot->idle = 0;
		slot->progressed = 0;
		slot->idle_reported = 0;
	}
#endif
	return 0;
}

/* The last program of each chain that begins at one of the calls below. */
int af_progress_on(struct af_sys_exit *ctx)
{
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!s)
		return 0;
	AF_CALL(7, af_progress_of, s);
	s->fds[0] = s->fds[1];
	if (s->fds[1] >= 0)
		AF_CALL(7, af_progress_of, s);
	return 0;
}

AF_FN int af_progressed_on(void *ctx, s32 fd, s32 second, u32 only)
{
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	if (!s)
		return 0;
	s->fds[0] = fd;
	s->fds[1] = second;
	s->only = only;
	prog.call(ctx, AF_PROG_PROGRESS);
	return 0;
}

#define af_progressed(fd, only) af_progressed_on(ctx, fd, -1, only)

/* A datagram may be empty; of a stream 0 is its end. */
AF_FN bool af_of_datagrams(s32 fd)
{
#if AF_ASK
	u64 file = af_file(fd);
	u32 kind = file ? (u32)af_word(af_word(file + AF_FILE_INODE) + AF_INODE_MODE) & 0170000 : 0;
	u32 type = kind == 0140000 ? (u32)af_word(af_word(file + AF_FILE_PRIVATE) + AF_SOCKET_TYPE) & 0xffff : 0;
	return type == 2 || type == 3; /* SOCK_DGRAM, SOCK_RAW (socket(2)) */
#else
	return false;
#endif
}

/* Something was taken, or another one had taken it: what epoll told of is gone, which was not to write. */
AF_FN int af_progress_taken(void *ctx, s32 fd, s64 ret)
{
	if (ret > 0 || (!ret && af_of_datagrams(fd)))
		return af_progressed(fd, 0);
	return ret == AF_EAGAIN ? af_progressed(fd, AF_READABLE) : 0;
}

int af_progress(struct af_sys_exit *ctx)
{
	return ctx->ret > 0 ? af_progressed((s32)AF_USER(di), 0) : 0;
}

int af_progress_read(struct af_sys_exit *ctx)
{
	return af_progress_taken(ctx, (s32)AF_USER(di), ctx->ret);
}

#define AF_MSG_PEEK 2

/* recvfrom(2): what was only looked at is still there */
int af_progress_recv(struct af_sys_exit *ctx)
{
	bool peeked = ctx->ret >= 0 && (AF_USER(r10) & AF_MSG_PEEK);
	return peeked ? 0 : af_progress_taken(ctx, (s32)AF_USER(di), ctx->ret);
}

/* recvmsg(2) */
int af_progress_recvmsg(struct af_sys_exit *ctx)
{
	bool peeked = ctx->ret >= 0 && (AF_USER(dx) & AF_MSG_PEEK);
	return peeked ? 0 : af_progress_taken(ctx, (s32)AF_USER(di), ctx->ret);
}

/* of accept(2) a new number, which may be 0; of timerfd_settime(2), connect(2) and
 * mq_send(3) 0 says that it was done; a message of a queue may be empty */
int af_progress_accept(struct af_sys_exit *ctx)
{
	s32 fd = (s32)AF_USER(di);
	if (ctx->ret >= 0)
		return af_progressed(fd, 0);
	return ctx->ret == AF_EAGAIN ? af_progressed(fd, AF_READABLE) : 0;
}

/* tee(2) and sendfile(2) name both descriptors first */
int af_progress_pair(struct af_sys_exit *ctx)
{
	if (ctx->ret <= 0)
		return 0;
	return af_progressed_on(ctx, (s32)AF_USER(di), (s32)AF_USER(si), 0);
}

/* splice(2) and copies between descriptors make progress on both */
int af_progress_two(struct af_sys_exit *ctx)
{
	if (ctx->ret <= 0)
		return 0;
	return af_progressed_on(ctx, (s32)AF_USER(di), (s32)AF_USER(dx), 0);
}
