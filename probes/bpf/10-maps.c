/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Maps and configuration. The files of this folder are one program, read in the order of their names;
 * the generated argument readers follow them. Configuration comes as -D from the loader:
 *   AF_RING_RECORDS, AF_LIFE_RECORDS (per CPU), AF_MAX_SLOTS, AF_MAX_THREADS, AF_URGENT_PAGES, AF_CPUS
 *   AF_UD_MASK, AF_IS_RESERVED(u), AF_HAVE_CREATE, AF_HAVE_DISPATCH, AF_OBJECT_OFFSET, AF_SLOT_SIZE,
 *   AF_CRASH_SLOT_SIZE, AF_LINK_OFFSET (-1: the profile names none)
 *   AF_MAX_ENTERED: calls whose entry values are kept
 */
#include <uapi/linux/ptrace.h>
#include "abi.h"

#define AF_EPOLLONESHOT (1u << 30)
#define AF_EPOLLET (1u << 31)
#define AF_CTL_ADD 1
#define AF_CTL_DEL 2
#define AF_CTL_MOD 3
#define AF_EBADF (-9)
#define AF_ENOENT (-2)
#define AF_CHUNK 32           /* epoll events handled by one program of the tail-call chain */
#define AF_MAX_EVENTS 512     /* of one wait: 16 chunks, each two of the 33 tail calls; the rest is counted */
#define AF_SUSPECTS 32        /* suspicions of one chunk that are sent: all of them */
#define AF_QUIET_AFTER 64     /* consecutive deliveries after which repeats are only counted */
#define AF_WATCH_READS_AFTER 8
#define AF_HOT_AFTER 1024
#define AF_MANY_WAITERS 0xffffffffu
#define AF_STACK_DEPTH 32
#define AF_STACK_SHORT 128    /* bytes still read where the whole AF_STACK_BYTES are not there: the stack's end */
#define AF_MAX_STACK_BYTES 2048
/* Where the kernel steps probed instructions out of line: the page below TASK_SIZE (xol_add_vma). */
#define AF_XOL_START 0x7fffffffe000ull
#define AF_XOL_END 0x7ffffffff000ull

/* tracepoint contexts; offsets as in tracefs' format files, stable since 4.x */
struct af_sys_enter { u64 common; s64 nr; u64 args[6]; };
struct af_sys_exit { u64 common; s64 nr; s64 ret; };
struct af_tp_exec { u64 common; u32 filename_loc; s32 pid; s32 old_pid; };
struct af_tp_exit { u64 common; char comm[16]; s32 pid; s32 prio; };
struct af_tp_newtask { u64 common; s32 pid; char comm[16]; u32 gap; u64 clone_flags; };
struct af_tp_signal { u64 common; s32 sig; s32 err; s32 code; char comm[16]; s32 pid; s32 group; s32 result; };
struct af_tp_fault { u64 common; u64 address; u64 ip; u64 error_code; };

struct af_epoll_event { u32 events; u64 data; } __attribute__((packed));

struct af_target {
	u64 armed;        /* ts when the target was added */
	u64 watch_reads;  /* until this ts, reads reset the repeat counts */
	u32 forks;        /* forked children that may still share descriptions */
	u32 hot_fds;      /* bit fd % 32: one of them is delivered again and again, so that its reads matter */
};

/* what is known of a number */
struct af_fd {
	u64 desc;      /* 0: never dup'ed */
	s32 epfd;      /* where it is registered; -1 nowhere */
	u32 closed;    /* 1: as if there was no entry: its close has begun, and the thread that closes has a copy */
};

struct af_desc { u64 refs; };

/* what a thread is in the middle of */
enum af_call { AF_CALL_NONE, AF_CALL_CTL, AF_CALL_CLOSE, AF_CALL_DUP, AF_CALL_DUP2, AF_CALL_WAIT, AF_CALL_ACCEPT,
	       AF_CALL_CREATE };

struct af_thread {
	u64 enter;
	u64 userdata;
	u64 ip;
	u64 events_ptr;
	u64 wait_enter;
	u64 wait_exit;
	u64 stale_slot;    /* first free slot delivered in the open batch */
	u64 fault_addr;
	u64 fault_ip;
	u64 fault_ts;
	u64 hit_ip;        /* the last uprobe this thread ran into */
	u64 crashed_at;    /* of the first of the fatal signals counted in `crashed` */
	struct af_fd was;  /* a close under way: what was known of the number before it */
	struct af_reg reg; /* and the registration under it; state NONE when there was none */
	u32 call;
	u32 op;
	s32 epfd;
	s32 fd;
	s32 newfd;
	u32 events;
	s32 stack;
	s32 wait_epfd;
	u32 batch;
	u32 batch_open;
	u32 batch_slots;   /* deliveries of the open batch that were recorded */
	u32 known;         /* the call concerns a known registration */
	u32 returned;      /* events of the wait that is being handled */
	u32 next;          /* first event of the next chunk */
	u32 crashed;
	u32 waits;         /* it has entered a wait on wait_epfd since the target was armed */
};

struct af_slot_key { u32 tgid; u32 gap; u64 addr; };
struct af_reg_key { u32 tgid; s32 epfd; s32 fd; u32 gap; };
struct af_fd_key { u32 tgid; s32 fd; };
struct af_desc_key { u32 tgid; u32 gap; u64 desc; };

/* one call of a function whose entry value is kept; its CFA tells it from every other one of the process */
struct af_call_key { u32 tgid; u32 entry; u64 cfa; };
struct af_entered { u64 armed; u64 value; };

struct af_path_key { char path[AF_PATH]; };
struct af_stack { u64 ip[AF_STACK_DEPTH]; };

struct af_pending { u64 addr; u32 what; u32 events; u32 index; u32 repeat; };
struct af_scratch {
	struct af_epoll_event events[43]; /* AF_CHUNK and what makes 511 bytes a safe length */
	struct af_pending pending[AF_CHUNK];
	u32 pending_count;
	u32 reported;
	u32 what;
	u32 first;
	u32 count;
	u32 repeat;        /* the delivery continues a run: of the batch before, and the first of this one */
	struct af_path_key path;
};

BPF_F_TABLE("array", int, struct af_rec, recorder, (AF_RING_RECORDS + 1) * AF_CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", int, struct af_lifetime, lifetimes, AF_LIFE_RECORDS * AF_CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", int, struct af_ring_head, lifetime_heads, AF_CPUS, BPF_F_MMAPABLE);
BPF_RINGBUF_OUTPUT(urgent, AF_URGENT_PAGES);
BPF_F_TABLE("stacktrace", int, struct af_stack, stacks, 8192, 0);
BPF_F_TABLE("hash", s32, struct af_stack_bytes, stack_bytes, AF_MAX_STACK_BYTES, 0);
BPF_F_TABLE("percpu_array", int, struct af_stack_bytes, stack_scratch, 1, 0);
BPF_F_TABLE("percpu_array", int, u64, counters, AF_C_MAX, 0);
BPF_F_TABLE("percpu_array", int, struct af_scratch, scratch, 1, 0);
BPF_F_TABLE("array", int, struct af_slot, empty_slot, 1, 0);
BPF_F_TABLE("array", int, struct af_reg, empty_reg, 1, 0);
BPF_F_TABLE("array", int, struct af_thread, empty_thread, 1, 0);
BPF_F_TABLE("hash", u32, struct af_target, targets, 256, 0);
BPF_F_TABLE("hash", u64, struct af_thread, threads, AF_MAX_THREADS, 0);
BPF_F_TABLE("hash", struct af_slot_key, struct af_slot, slots, AF_MAX_SLOTS, 0);
BPF_F_TABLE("hash", struct af_reg_key, struct af_reg, regs, AF_MAX_SLOTS, 0);
BPF_F_TABLE("hash", struct af_fd_key, struct af_fd, fds, AF_MAX_SLOTS, 0);
BPF_F_TABLE("hash", struct af_desc_key, struct af_desc, descs, 8192, 0);
BPF_F_TABLE("hash", struct af_desc_key, struct af_reg, orphans, 4096, 0);
BPF_F_TABLE("hash", struct af_slot_key, u64, objects, AF_MAX_SLOTS, 0);
BPF_F_TABLE("hash", struct af_fd_key, u32, waiters, 4096, 0);
BPF_F_TABLE("hash", u32, u32, children, 4096, 0);
BPF_F_TABLE("hash", struct af_path_key, u32, exec_paths, 64, 0);
BPF_F_TABLE("lru_hash", struct af_call_key, struct af_entered, entered, AF_MAX_ENTERED, 0);
BPF_F_TABLE("prog", int, int, prog, 2, 0);
