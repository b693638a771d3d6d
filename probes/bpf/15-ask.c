/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Asking the kernel. Its registration table is the truth: a registration is an epitem, (eventpoll, file, fd), and
 * file->f_ep lists the epitems of a file (include/linux/fs.h, fs/eventpoll.c). Reading memory that was freed
 * meanwhile is safe with bpf_probe_read_kernel, and cannot lie: every field of the epitem is compared, and that the
 * list still leads to it.
 */
#define AF_GONE 0u
#define AF_EXISTS 1u
#define AF_CANNOT_TELL 2u
#define AF_TOO_MANY (~0ull)

#if AF_ASK

AF_FN u64 af_word(u64 at)
{
	u64 value = 0;
	bpf_probe_read_kernel(&value, sizeof(value), (void *)at);
	return value;
}

/* The open file of a number of the current process; 0 when there is none. */
AF_FN u64 af_file(s32 fd)
{
	u64 fdt = af_word(af_word((u64)bpf_get_current_task() + AF_TASK_FILES) + AF_FILES_FDT);
	if ((u32)fd >= (u32)af_word(fdt + AF_FDT_MAX))
		return 0;
	return af_word(af_word(fdt + AF_FDT_FD) + 8 * (u64)(u32)fd);
}

AF_FN u64 af_eventpoll(s32 epfd)
{
	u64 file = af_file(epfd);
	return file ? af_word(file + AF_FILE_PRIVATE) : 0;
}

AF_FN u64 af_inode(u64 file)
{
	return file ? af_word(af_word(file + AF_FILE_INODE) + AF_INODE_INO) : 0;
}

/* struct epoll_filefd, packed */
struct af_filefd { u64 file; s32 fd; } __attribute__((packed));

/* The first epitem of a file, as the address of its list node; 0 when nobody registered it. */
AF_FN u64 af_first_item(u64 file)
{
	u64 head = file ? af_word(file + AF_FILE_EP) : 0;
	return head ? af_word(head) : 0;
}

/* The epitem of (ep, file, fd) with its event, found by walking the file's list; 0 when there is none, AF_TOO_MANY when
 * the file has more than are looked at. */
AF_FN u64 af_find_item(u64 ep, u64 file, s32 fd, struct af_epoll_event *event)
{
	u64 node = af_first_item(file), found = 0;
	AF_LOOP
	for (u32 i = 0; i < AF_ITEMS; i++) {
		if (!node)
			break;
		u64 item = node - AF_ITEM_LINK;
		struct af_filefd ffd = {};
		bpf_probe_read_kernel(&ffd, sizeof(ffd), (void *)(item + AF_ITEM_FFD));
		if (ffd.fd == fd && ffd.file == file && af_word(item + AF_ITEM_EP) == ep) {
			found = item;
			node = 0;
			break;
		}
		node = af_word(node);
	}
	if (found)
		bpf_probe_read_kernel(event, sizeof(*event), (void *)(found + AF_ITEM_EVENT));
	return node ? AF_TOO_MANY : found;
}

/* Was the last reference to the file dropped? Its registrations are still listed until fput's task work has run, on the
 * way back to user mode: always with dup2, and with close(2) before 6.6. Nobody can get the file again. */
AF_FN bool af_dying(u64 file)
{
	u64 count = AF_FILE_COUNT < 0 ? 1 : af_word(file + AF_FILE_COUNT);
	/* FILE_REF_RELEASED (include/linux/file_ref.h, 6.13); a plain count before */
	return AF_FILE_REF ? count >= 0xc000000000000000ull : !count;
}

/* Of a TCP connection, how far the program has read, and how many segments of data have come (struct tcp_sock). */
AF_FN bool af_tcp(u64 file, u32 *taken, u32 *arrived)
{
#if AF_TCP_TAKEN
	if (!file || ((u32)af_word(af_word(file + AF_FILE_INODE) + AF_INODE_MODE) & 0170000) != 0140000)
		return false; /* no socket */
	u64 socket = af_word(file + AF_FILE_PRIVATE);
	u64 sk = af_word(socket + AF_SOCKET_SK);
	if ((af_word(socket + AF_SOCKET_TYPE) & 0xffff) != 1 || (af_word(sk + AF_SOCK_PROTOCOL) & 0xffff) != 6)
		return false; /* SOCK_STREAM, IPPROTO_TCP */
	*taken = (u32)af_word(sk + AF_TCP_TAKEN);
	*arrived = (u32)af_word(sk + AF_TCP_ARRIVED);
	return true;
#else
	return false;
#endif
}

/* Does the registration at this epitem exist now? An epitem that was removed has lost its place in the file's list
 * (hlist_del_rcu poisons pprev); one that another registration has reused differs in some field. */
AF_FN u32 af_ask(u64 item, u64 ep, u64 file, s32 fd, u64 userdata)
{
	if (!item || item == AF_TOO_MANY)
		return AF_CANNOT_TELL;
	u64 link = item + AF_ITEM_LINK;
	if (af_word(af_word(link + 8)) != link)
		return AF_GONE;
	struct af_filefd ffd = {};
	bpf_probe_read_kernel(&ffd, sizeof(ffd), (void *)(item + AF_ITEM_FFD));
	return ffd.file == file && ffd.fd == fd && af_word(item + AF_ITEM_EP) == ep &&
			       af_word(item + AF_ITEM_EVENT + 4) == userdata && !af_dying(file)
		       ? AF_EXISTS
		       : AF_GONE;
}

/* A one-shot that has fired keeps mode bits only, and delivers nothing until a MOD (EP_PRIVATE_BITS, fs/eventpoll.c). */
AF_FN bool af_disarmed(u64 item)
{
	struct af_epoll_event event = {};
	if (!item || item == AF_TOO_MANY)
		return false;
	bpf_probe_read_kernel(&event, sizeof(event), (void *)(item + AF_ITEM_EVENT));
	return !(event.events & 0x0fffffff);
}

#else

/* Without BTF the numbers stand for what they name, and nobody can be asked: findings are inferred at most. */
#define AF_NUMBER(n) ((1ull << 63) | (u32)(n))

AF_FN u64 af_file(s32 fd) { return fd < 0 ? 0 : AF_NUMBER(fd); }
AF_FN u64 af_eventpoll(s32 epfd) { return epfd < 0 ? 0 : AF_NUMBER(epfd); }
AF_FN u64 af_inode(u64 file) { return 0; }
AF_FN bool af_tcp(u64 file, u32 *taken, u32 *arrived) { return false; }
AF_FN bool af_disarmed(u64 item) { return false; }
AF_FN u64 af_find_item(u64 ep, u64 file, s32 fd, struct af_epoll_event *event) { return AF_TOO_MANY; }
AF_FN u32 af_ask(u64 item, u64 ep, u64 file, s32 fd, u64 userdata) { return AF_CANNOT_TELL; }

#endif

/* Where a user thread is: registers saved at its entry into the kernel. */
AF_FN u64 af_user_reg(u32 offset)
{
	u64 value = 0;
	u64 regs = (u64)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
	bpf_probe_read_kernel(&value, sizeof(value), (void *)(regs + offset));
	return value;
}

#define AF_USER(field) af_user_reg(__builtin_offsetof(struct pt_regs, field))
