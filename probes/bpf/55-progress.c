/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Calls that consume from a file or produce on it: attached only while a spin is suspected. A call that moved nothing
 * (EAGAIN, or the end of the stream again and again) is no progress.
 */
AF_FN int af_progressed(s32 fd)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
#if AF_ASK
	u64 node = af_first_item(af_file(fd));
	AF_LOOP
	for (u32 i = 0; i < AF_ITEMS; i++) {
		if (!node)
			break;
		u64 userdata = af_word(node - AF_ITEM_LINK + AF_ITEM_EVENT + 4);
		node = af_word(node);
		struct af_slot *slot = af_slot_find(target, af_slot_behind(target, userdata, false));
		if (!slot || !slot->idle)
			continue;
		u64 now = bpf_ktime_get_ns();
		if (slot->idle >= AF_QUIET_AFTER)
			af_record(AF_PROGRESS, 0, now, now, slot->addr, slot->gen, fd, slot->epfd, 0,
				  (u32)slot->idle, -1);
		slot->idle = 0;
		slot->idle_reported = 0;
	}
#endif
	return 0;
}

int af_progress(struct af_sys_exit *ctx)
{
	return ctx->ret > 0 ? af_progressed((s32)AF_USER(di)) : 0;
}

#define AF_MSG_PEEK 2

/* recvfrom(2): what was only looked at is still there */
int af_progress_recv(struct af_sys_exit *ctx)
{
	return ctx->ret > 0 && !(AF_USER(r10) & AF_MSG_PEEK) ? af_progressed((s32)AF_USER(di)) : 0;
}

/* recvmsg(2) */
int af_progress_recvmsg(struct af_sys_exit *ctx)
{
	return ctx->ret > 0 && !(AF_USER(dx) & AF_MSG_PEEK) ? af_progressed((s32)AF_USER(di)) : 0;
}

/* of accept(2) a new number, which may be 0; of timerfd_settime(2), connect(2) and
 * mq_send(3) 0 says that it was done; a message of a queue may be empty */
int af_progress_accept(struct af_sys_exit *ctx)
{
	return ctx->ret >= 0 ? af_progressed((s32)AF_USER(di)) : 0;
}

/* splice(2) and copies between descriptors make progress on both */
int af_progress_two(struct af_sys_exit *ctx)
{
	if (ctx->ret <= 0)
		return 0;
	af_progressed((s32)AF_USER(di));
	return af_progressed((s32)AF_USER(dx));
}
