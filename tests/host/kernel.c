/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * What system calls do to the simulated kernel. The truth (truth.c) is told of every registration's birth, change and
 * end, at the moment it happens.
 */
#define SIM_EBADF (-9)
#define SIM_ENOENT (-2)
#define SIM_EEXIST (-17)
#define SIM_EINVAL (-22)
#define SIM_ONESHOT (1u << 30)
#define SIM_EDGE (1u << 31)

static u32 truth_born(struct sim_epitem *item);
static void truth_changed(struct sim_epitem *item);
static void truth_ended(struct sim_epitem *item);

#define SIM_TAKE(list)                                                                                          \
	({                                                                                                      \
		__typeof__(sim.list) taken = sim.list;                                                          \
		if (!taken)                                                                                     \
			__builtin_trap();                                                                       \
		sim.list = taken->free_next;                                                                    \
		taken;                                                                                          \
	})
#define SIM_GIVE(list, object)                                                                                  \
	do {                                                                                                    \
		(object)->free_next = sim.list;                                                                 \
		sim.list = (object);                                                                            \
	} while (0)

static void sim_reset(void)
{
	u64 now = sim.now;
	__builtin_memset(&sim, 0, __builtin_offsetof(struct sim, user));
	__builtin_memset(sim.user, 0, 0x100 * SIM_SLOTS);
	sim.now = now < 1000000000ull ? 1000000000ull : now;
	for (u32 i = SIM_FILES; i-- > 0;) {
		SIM_GIVE(free_files, &sim.files[i]);
		SIM_GIVE(free_heads, &sim.heads[i]);
	}
	for (u32 i = SIM_ITEMS; i-- > 0;)
		SIM_GIVE(free_items, &sim.items[i]);
	for (u32 i = SIM_POLLS; i-- > 0;)
		SIM_GIVE(free_polls, &sim.polls[i]);
	for (u32 i = 0; i < SIM_PROCESSES; i++) {
		struct sim_files *files = &sim.tables[i];
		files->fdt = &files->table;
		files->table.max_fds = SIM_FDS;
		files->table.fd = files->fd;
		sim.child_tasks[i] = (struct sim_task){.files = files, .tgid = 100 + i, .pid = 100 + i};
	}
	for (u32 i = 0; i < SIM_THREADS; i++)
		sim.tasks[i] = (struct sim_task){.files = &sim.tables[0], .tgid = 100, .pid = i ? 200 + i : 100};
	sim.current = &sim.tasks[0];
}

/* -- epitems */

static struct sim_epitem *sim_item(struct sim_eventpoll *ep, struct sim_file *file, s32 fd)
{
	for (u32 i = 0; i < ep->count; i++)
		if (ep->ready[i]->ffd.file == file && ep->ready[i]->ffd.fd == fd)
			return ep->ready[i];
	return 0;
}

/* ep_remove: the list's head goes first when this is its last item, then hlist_del_rcu poisons pprev */
static void sim_item_remove(struct sim_epitem *item)
{
	struct sim_file *file = item->ffd.file;
	struct sim_head *head = file->f_ep;
	struct sim_node *node = &item->fllink, *next = node->next;
	bool last = head->first == node && !next;
	truth_ended(item);
	if (last)
		file->f_ep = 0;
	*node->pprev = next;
	if (next)
		next->pprev = node->pprev;
	node->pprev = SIM_POISON2;
	if (last)
		SIM_GIVE(free_heads, head);
	struct sim_eventpoll *ep = item->ep;
	u32 keep = 0;
	for (u32 i = 0; i < ep->count; i++)
		if (ep->ready[i] != item)
			ep->ready[keep++] = ep->ready[i];
	ep->count = keep;
	item->used = false;
	SIM_GIVE(free_items, item);
}

static void sim_item_insert(struct sim_eventpoll *ep, struct sim_file *file, s32 fd, struct sim_event event)
{
	struct sim_epitem *item = SIM_TAKE(free_items);
	__builtin_memset(item, 0, sizeof(*item));
	item->used = true;
	item->ep = ep;
	item->ffd = (struct sim_filefd){file, fd};
	item->event = event;
	if (!file->f_ep) {
		file->f_ep = SIM_TAKE(free_heads);
		file->f_ep->first = 0;
	}
	struct sim_node *node = &item->fllink, *first = file->f_ep->first;
	node->next = first;
	node->pprev = &file->f_ep->first;
	if (first)
		first->pprev = &node->next;
	file->f_ep->first = node;
	ep->ready[ep->count++] = item;
	item->reg = truth_born(item);
}

/* Has a one-shot of this registration fired? It tells nothing until a MOD. */
static bool sim_disarmed(u32 reg)
{
	for (u32 i = 0; i < SIM_ITEMS; i++)
		if (sim.items[i].used && sim.items[i].reg == reg)
			return !(sim.items[i].event.events & ~(SIM_ONESHOT | SIM_EDGE));
	return false;
}

/* -- files */

static void sim_release(struct sim_file *file)
{
	while (file->f_ep) /* eventpoll_release_file */
		sim_item_remove(SIM_ITEM_OF(file->f_ep->first));
	if (file->poll) {
		struct sim_eventpoll *ep = file->private_data;
		while (ep->count)
			sim_item_remove(ep->ready[0]);
		SIM_GIVE(free_polls, ep);
	}
	file->private_data = 0;
	SIM_GIVE(free_files, file);
}

static void sim_put(struct sim_file *file)
{
	if (!--file->refs)
		sim_release(file);
}

static struct sim_file *sim_file_of(struct sim_files *files, s32 fd)
{
	return fd >= 0 && fd < SIM_FDS ? files->fd[fd] : 0;
}

/* The lowest number that is free (open(2)). */
static s32 sim_install(struct sim_files *files, struct sim_file *file)
{
	for (s32 fd = 3; fd < SIM_FDS; fd++) {
		if (files->fd[fd])
			continue;
		files->fd[fd] = file;
		return fd;
	}
	__builtin_trap();
}

static s32 sim_open(struct sim_files *files, bool poll)
{
	struct sim_file *file = SIM_TAKE(free_files);
	__builtin_memset(file, 0, sizeof(*file));
	file->refs = 1;
	file->serial = ++sim.serial;
	file->inode.i_ino = 1000 + file->serial;
	file->f_inode = &file->inode;
	file->poll = poll;
	if (poll) {
		struct sim_eventpoll *ep = SIM_TAKE(free_polls);
		ep->count = 0;
		file->private_data = ep;
	}
	return sim_install(files, file);
}

static s32 sim_dup(struct sim_files *files, s32 fd)
{
	struct sim_file *file = sim_file_of(files, fd);
	if (!file)
		return SIM_EBADF;
	file->refs++;
	return sim_install(files, file);
}

/* Takes the number out of the table; its reference is the caller's to put. */
static struct sim_file *sim_take_out(struct sim_files *files, s32 fd)
{
	struct sim_file *file = sim_file_of(files, fd);
	if (file)
		files->fd[fd] = 0;
	return file;
}

static void sim_fork(struct sim_files *from, struct sim_files *to)
{
	for (u32 fd = 0; fd < SIM_FDS; fd++) {
		to->fd[fd] = from->fd[fd];
		if (to->fd[fd])
			to->fd[fd]->refs++;
	}
}

static void sim_drop_all(struct sim_files *files)
{
	for (s32 fd = 0; fd < SIM_FDS; fd++) {
		struct sim_file *file = sim_take_out(files, fd);
		if (file)
			sim_put(file);
	}
}

/* -- epoll */

static s32 sim_epoll_ctl(struct sim_files *files, s32 epfd, u32 op, s32 fd, struct sim_event event)
{
	struct sim_file *poll = sim_file_of(files, epfd), *file = sim_file_of(files, fd);
	if (!poll || !file)
		return SIM_EBADF;
	if (!poll->poll || file->poll)
		return SIM_EINVAL; /* an instance within another is not simulated */
	struct sim_eventpoll *ep = poll->private_data;
	struct sim_epitem *item = sim_item(ep, file, fd);
	if (op == 1) {
		if (item)
			return SIM_EEXIST;
		sim_item_insert(ep, file, fd, event);
		return 0;
	}
	if (!item)
		return SIM_ENOENT;
	if (op == 2) {
		sim_item_remove(item);
		return 0;
	}
	item->event = event;
	item->fired = false;
	truth_changed(item);
	return 0;
}

static u32 sim_told_by[SIM_EVENTS]; /* registrations that the last wait told of */

/* ep_send_events: what was told goes to the end of the list when it is level-triggered */
static s32 sim_epoll_wait(struct sim_files *files, s32 epfd, u64 array, u32 most)
{
	struct sim_file *poll = sim_file_of(files, epfd);
	if (!poll)
		return SIM_EBADF;
	if (!poll->poll)
		return SIM_EINVAL;
	struct sim_eventpoll *ep = poll->private_data;
	struct sim_event *to = (struct sim_event *)(sim.user + (array - SIM_USER));
	u32 told = 0, look = ep->count, at = 0;
	while (look-- && told < most) {
		struct sim_epitem *item = ep->ready[at];
		if (!item->ffd.file->ready || item->fired) {
			at++;
			continue;
		}
		sim_told_by[told] = item->reg;
		to[told++] = item->event;
		item->fired = item->event.events & (SIM_ONESHOT | SIM_EDGE);
		if (item->event.events & SIM_ONESHOT)
			item->event.events &= SIM_ONESHOT | SIM_EDGE; /* EP_PRIVATE_BITS */
		for (u32 i = at; i + 1 < ep->count; i++)
			ep->ready[i] = ep->ready[i + 1];
		ep->ready[ep->count - 1] = item;
	}
	return told;
}

/* The peer sent something: edge-triggered registrations are told again. */
static void sim_ready(struct sim_file *file)
{
	file->ready = true;
	for (struct sim_node *node = file->f_ep ? file->f_ep->first : 0; node; node = node->next) {
		struct sim_epitem *item = SIM_ITEM_OF(node);
		if (!(item->event.events & SIM_ONESHOT))
			item->fired = false;
	}
}
