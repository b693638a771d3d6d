/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * A small kernel: what fs/file.c and fs/eventpoll.c keep about descriptors, open files and registrations, in the shape
 * in which the programs read it. Freed objects are given out again at once, the last one first, as the slab allocators
 * do: that is what deceives who remembers an address.
 */
#include <uapi/linux/ptrace.h>

#define SIM_THREADS 4
#define SIM_PROCESSES 3 /* the target first, then its forked children */
#define SIM_FDS 24
#define SIM_FILES 32
#define SIM_ITEMS 32
#define SIM_POLLS 6
#define SIM_SLOTS 6
#define SIM_VARS 16 /* descriptor numbers that the target's threads share */
#define SIM_EVENTS 8
#define SIM_REGS 64

#define SIM_USER 0x10000000ull
#define SIM_USER_BYTES 0x8000u
#define SIM_SLOT_AT(slot) (SIM_USER + 0x100ull * (u64)(slot))
#define SIM_ARRAY_AT(thread) (SIM_USER + 0x1000 + 0x400ull * (thread))
#define SIM_STACK_AT(thread, depth) (SIM_USER + 0x2f00 + 0x1000ull * (thread) - 0x80ull * (depth))

#define SIM_POISON2 ((struct sim_node **)0xdead000000000122ull) /* LIST_POISON2 (include/linux/poison.h) */

struct sim_node { struct sim_node *next, **pprev; };
struct sim_head { struct sim_node *first; struct sim_head *free_next; };
struct sim_inode { u64 i_ino; u64 i_mode; };
struct sim_filefd { struct sim_file *file; s32 fd; } __attribute__((packed));
struct sim_event { u32 events; u64 data; } __attribute__((packed));

struct sim_epitem {
	struct sim_filefd ffd;
	struct sim_eventpoll *ep;
	struct sim_node fllink;
	struct sim_event event;
	struct sim_epitem *free_next;
	bool used, fired; /* edge or one-shot: told, and not ready again since */
	u32 reg;          /* of the truth */
};

#define SIM_ITEM_OF(node) ((struct sim_epitem *)((u8 *)(node) - __builtin_offsetof(struct sim_epitem, fllink)))

struct sim_eventpoll {
	struct sim_eventpoll *free_next;
	struct sim_epitem *ready[SIM_ITEMS]; /* its items, in the order in which they are told */
	u32 count;
};

struct sim_file {
	void *private_data;
	struct sim_head *f_ep;
	struct sim_inode *f_inode;
	struct sim_inode inode;
	struct sim_file *free_next;
	u64 refs;
	u32 serial;
	bool ready, poll;
};

struct sim_fdtable { u32 max_fds; struct sim_file **fd; };
struct sim_files { struct sim_fdtable *fdt, table; struct sim_file *fd[SIM_FDS]; };
struct sim_mm { u64 start_code, end_code; };
struct sim_signal { u32 live, flags, group_exit_code; };
struct sim_task {
	struct sim_files *files;
	struct sim_mm *mm;
	struct pt_regs regs;
	u32 tgid, pid;
	struct sim_signal *signal;
	struct sim_task *group_leader;
	u64 exit_code;
};

struct sim {
	u64 now;
	struct sim_task *current;
	u32 serial, inodes;
	struct sim_file files[SIM_FILES], *free_files;
	struct sim_epitem items[SIM_ITEMS], *free_items;
	struct sim_eventpoll polls[SIM_POLLS], *free_polls;
	struct sim_head heads[SIM_FILES], *free_heads;
	struct sim_files tables[SIM_PROCESSES];
	struct sim_file *in_flight[SIM_VARS]; /* by SCM_RIGHTS: nobody's table has it */
	struct sim_task tasks[SIM_THREADS], child_tasks[SIM_PROCESSES];
	u8 user[SIM_USER_BYTES];
};

static struct sim sim;
