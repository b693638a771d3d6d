/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Maps and configuration. The files of this folder are one program, read in the order of their names;
 * the generated argument readers follow them. Configuration comes as -D from the loader:
 *   AF_RING_RECORDS, AF_LIFE_RECORDS (per CPU), AF_MAX_SLOTS, AF_MAX_THREADS, AF_MAX_TARGETS, AF_URGENT_PAGES, AF_CPUS
 *   AF_UD_MASK, AF_UD_OFFSET, AF_IS_RESERVED(u), AF_EMBEDDED(x) (x(offset) for each place within a slot that
 *   userdata may point at instead), AF_HAVE_CREATE, AF_CREATE_COMPLETE, AF_HAVE_DISPATCH,
 *   AF_OBJECT_IS_SLOT, AF_OBJECT_DELTA, AF_OBJECT_OFFSET, AF_SLOT_SIZE, AF_CRASH_SLOT_SIZE,
 *   AF_LINK_OFFSET (-1: the profile names none), AF_COUNT_OFFSET (-1: none), AF_COUNT_SIZE, AF_FREES_AT
 *   AF_MAX_ENTERED: calls whose entry values are kept
 *   AF_ASK (0: no BTF, the kernel cannot be asked) and the offsets of its structures:
 *   AF_MM_EXE, AF_INODE_SB, AF_SB_DEV,
 *   AF_TASK_FILES, AF_TASK_MM, AF_TASK_THREAD, AF_TASK_SIGNAL, AF_TASK_LEADER, AF_TASK_EXIT, AF_SIGNAL_LIVE,
 *   AF_SIGNAL_FLAGS, AF_SIGNAL_EXIT, AF_THREAD_CR2, AF_THREAD_TRAP, AF_MM_START_CODE, AF_MM_END_CODE, AF_FILES_FDT,
 *   AF_FDT_FD, AF_FDT_MAX, AF_FILE_PRIVATE, AF_FILE_EP, AF_FILE_INODE, AF_FILE_COUNT (-1: not found),
 *   AF_FILE_REF (1: a file_ref_t), AF_INODE_INO, AF_INODE_MODE, AF_SOCKET_TYPE, AF_SOCKET_SK, AF_SOCK_PROTOCOL,
 *   AF_TCP_TAKEN, AF_TCP_ARRIVED, AF_ITEM_LINK, AF_ITEM_FFD, AF_ITEM_EP, AF_ITEM_EVENT
 *   and of tracepoints, from tracefs: AF_TP_NEWTASK_PID, AF_TP_NEWTASK_FLAGS, AF_TP_EXEC_FILENAME,
 *   AF_TP_SIGNAL_SIG, AF_TP_SIGNAL_CODE, AF_TP_SIGNAL_PID, AF_TP_FAULT_ADDRESS, AF_TP_FAULT_IP
 */
#include <uapi/linux/ptrace.h>
#include "abi.h"

#define AF_FN static inline __attribute__((always_inline))
/* a member of a map's value that is really read and written there: what the verifier does not follow, it does not
 * tell states apart by */
#define AF_KEPT(member) (*(volatile __typeof__(member) *)&(member))
/* A function that the verifier looks at once, whatever is known where it is called: AF_CALL(number, name, s) calls
 * entry `number` of FUNCTIONS in probes/linked.py. It takes a place to work on, which holds what it is about and what
 * it finds, and returns a number. At most three deep, each with little on its stack: 512 bytes serve all of them. */
#define AF_CALL_BASE 0x7f000000
#ifndef AF_CALL
#define AF_CALL(number, name, s) (((int (*)(struct af_scratch *))(u64)(AF_CALL_BASE + (number)))(s))
#endif
#define AF_LOOP _Pragma("clang loop unroll(disable)")

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
#define AF_HOPELESS_AFTER 1024 /* deliveries that no call can answer, after which they are a spin */
#define AF_SUSPECT_AFTER 512  /* deliveries without known progress after which progress should be watched */
#define AF_SUSPECT_NS 250000000ull /* and that long: a loop whose worker is preempted is told again and again, too */
#define AF_WASTED 16          /* deliveries for each call that made progress, beyond which they are a spin */
#define AF_HOT_NS 1500000000ull /* that long without progress, while it was watched: a spin */
#define AF_HOT_AFTER 1024     /* and that many deliveries */
#define AF_ITEMS 16           /* registrations of one file that are looked at */
#define AF_CLOSING 4          /* registrations of one number that a close is accounted for */
#define AF_DESTROYS 4
#define AF_MISSED 8           /* failed MODs and DELs of a thread that an ADD may still explain */
#define AF_BATCHES 4          /* open batches of one thread: nested waits */
#define AF_LEFT_NS 1000000000ull /* as SETTLE_NS of probes/leftovers.py */
#define AF_PENDING 1024       /* slots of one thread that wait to be judged */
#define AF_SETTLE_AT_ONCE 3   /* of these, by one program of the tail-call chain */
#define AF_MANY_WAITERS 0xffffffffu
#define AF_STACK_DEPTH 32
#define AF_STACK_WORDS 16 /* of the stack's end, that tell one stack from another */
#define AF_MAX_SITES 4096
#define AF_EACH_OF_SITE 64    /* that many of one rule at one site are sent each, later ones at doublings */
#define AF_SHARES 16          /* one more than there are suspicions */
#define AF_MAX_STACKS 16384
#define AF_MAX_NUMBERS 16384   /* descriptor numbers whose last registration is remembered */
#define AF_STACK_SHORT 128    /* bytes still read where the whole AF_STACK_BYTES are not there: the stack's end */
#define AF_MAX_STACK_BYTES 2048
/* Where the kernel steps probed instructions out of line: the page below TASK_SIZE (xol_add_vma). */
#define AF_XOL_START 0x7fffffffe000ull
#define AF_XOL_END 0x7ffffffff000ull

/* syscall tracepoints: the layout of syscall_enter_define_fields and syscall_exit_define_fields
 * (kernel/trace/trace_syscalls.c); the loader compares it with tracefs */
struct af_sys_enter { u64 common; s64 nr; u64 args[6]; };
struct af_sys_exit { u64 common; s64 nr; s64 ret; };

struct af_settle_args { u64 tgid_epoch; u64 addr; };

struct af_epoll_event { u32 events; u64 data; } __attribute__((packed));

/* af_target.flags */
#define AF_T_LATE 1u          /* it ran before the probes were armed, or was forked: slots may be older than we know */
#define AF_T_FOLLOW 2u        /* its forked children are targets, too */
#define AF_T_TABLE_SHARED 4u  /* another process shares its descriptor table (CLONE_FILES) */

struct af_target {
	u64 armed;        /* ts when the target was added */
	u32 epoch;        /* tells its slots from those of a program that the same process ran before */
	u32 flags;
	u32 forks;        /* forked children that may still share descriptions */
	u32 last_child;   /* the newest of them */
	u64 forked_at;
	u64 not_judged;   /* frees within a batch, see AF_C_NOT_JUDGED */
	u64 spin_said;    /* when AF_SPIN_SUSPECTED was sent last */
	u64 answered;     /* kinds of events (AF_KIND) that a dispatch was seen to answer */
	u64 unanswered;   /* and that none did, before the slot's next delivery: other functions handle them, too */
};

/* what user space tells all programs; it alone writes it */
struct af_control {
	u64 watch_since;  /* calls that make progress are watched since; 0: they are not */
	u64 spin_quiet;   /* no AF_SPIN_SUSPECTED before: the suspicion was wrong the last time */
};

/* a batch: what one wait returned, until the same thread waits there again */
struct af_batch {
	u64 ep;           /* struct eventpoll * */
	u64 events;       /* user address of the array */
	u64 enter;
	u64 exit;
	u64 sp;           /* user stack pointer of the wait */
	s32 epfd;
	u32 count;
	u32 number;
	u32 nested;       /* a wait on another instance came after it, as deep on the stack: it may be over */
};

/* what a thread is in the middle of */
enum af_call { AF_CALL_NONE, AF_CALL_CTL, AF_CALL_CLOSE, AF_CALL_DUP2, AF_CALL_WAIT, AF_CALL_CREATE };

/* a call of destroy that may be under way */
struct af_destroy {
	u64 addr;
	u64 sp;      /* user stack pointer at the probe */
	u64 ret;     /* return address, where the probe is at a function's entry; 0 unknown */
	u64 ip;
};

struct af_reg_key { u64 ep; u64 file; s32 fd; u32 gap; };

/* a close that failed within closes of one number after the other; at 0: none */
struct af_bad_close { u64 at; u64 enter; s32 fd; s32 stack; };

/* an EPOLL_CTL_MOD or DEL that found nothing: an ADD that follows makes it an idiom */
struct af_missed { u64 at; u64 enter; u64 slot; s32 fd; s32 epfd; s32 stack; u32 op; };

/* the dispatch that may be under way */
struct af_handling { u64 addr; u64 sp; u64 ret; u32 batch; u32 gap; };

struct af_thread {
	u64 enter;
	u64 userdata;
	u64 ip;
	u64 file;            /* of the call's fd, before it */
	u64 ep;              /* of the call's epfd */
	u64 stale_slot;      /* first free slot delivered in the newest batch */
	u64 fault_addr;
	u64 fault_ip;
	u64 fault_ts;
	u64 hit_ip;          /* the last uprobe this thread ran into */
	u64 hit_value;       /* what its reader handed on to the program of its role */
	u64 crashed_at;      /* of the first of the fatal signals counted in `crashed` */
	u64 outlived;        /* slot whose registration outlived the close under way, by a duplicate; 0 none */
	struct af_missed missed[AF_MISSED];
	struct af_handling handling;
	struct af_destroy destroys[AF_DESTROYS]; /* the calls of destroy that were entered last */
	struct af_batch wait;               /* of the wait under way, or the newest batch */
	struct af_batch open[AF_BATCHES];   /* open batches, outermost first */
	struct af_reg_key closing[AF_CLOSING]; /* registrations under the number that is being closed */
	u32 depth;           /* open batches */
	u32 call;
	u32 op;
	s32 epfd;
	s32 fd;
	s32 newfd;
	u32 events;
	s32 stack;
	u32 batch;           /* batches so far */
	u32 batch_slots;     /* deliveries of the newest batch that were recorded */
	u32 exists;          /* the kernel's answer, before the call, on the registration that it concerns */
	u32 begun;           /* an ADD that this thread noted */
	u32 closings;        /* entries of `closing` */
	u32 returned;        /* events of the wait that is being handled */
	u32 next;            /* first event of the next chunk */
	u32 crashed;
	u32 waits;           /* it has entered a wait on wait.epfd since the target was armed */
	u32 destroyed;       /* calls of destroy so far */
	s32 closed_fd;       /* the number of its last close */
	struct af_bad_close bad;
	u32 closed_up;       /* closes of one number after the other, up to it */
	u32 closed_down;
	u32 missed_count;
	u32 pending_first;   /* of its entries in `pending`: [first, next) */
	u32 pending_next;
	u32 pending_until;   /* of them, judged by the chain of programs under way */
	u32 exiting;         /* it is ending */
	u32 hit_entry;       /* it is at a function's entry */
	u32 settle;          /* the batch has a slot whose judgement was put off */
};

struct af_slot_key { u32 tgid; u32 epoch; u64 addr; };
struct af_fd_key { u32 tgid; u32 epoch; s32 fd; };

/* a slot that was destroyed while it was registered: judged when the call is over */
struct af_pending_key { u64 id; u32 index; u32 gap; };
struct af_pending_slot { u64 addr; u64 judge; u32 gen; u32 epoch; };

/* of a thread that has ended */
struct af_name { char comm[AF_COMM]; };

/* an EPOLL_CTL_ADD that failed: how its caller cleans up after it is seldom tried */
struct af_failed { u64 slot; u64 enter; u64 ts; u64 ip; u32 tid; s32 stack; s32 fd; s32 epfd; u32 gen; u32 error; };

struct af_dup { u64 enter; u64 ts; u64 ip; u32 tid; s32 stack; s32 oldfd; s32 newfd; };

/* one call of a function whose entry value is kept; its CFA tells it from every other one of the process */
struct af_call_key { u32 tgid; u32 entry; u64 cfa; };
struct af_entered { u64 armed; u64 value; };

/* where a rule is broken again and again: how often so far */
struct af_site_key { u32 tgid; u32 epoch; u32 what; s32 stack; };

/* what a rule has put into the urgent ring since it was nearly empty the last time; at 0: how often it was that */
struct af_share { u64 round; u64 bytes; };

struct af_path_key { char path[AF_PATH]; };
struct af_stack { u64 ip[AF_STACK_DEPTH]; };

/* addresses that code may be at: [from, to) */
struct af_span { u64 from; u64 to; };

/* of a suspicion: what set it off */
struct af_trigger_args {
	u64 ts;
	u64 enter;
	u64 addr;
	u32 gen;
	s32 fd;
	s32 epfd;
	s32 ret;
	u32 arg;
	s32 stack;
	u16 kind;
	u16 flags;
	u32 tid;     /* 0: the current thread */
};

/* What a program works on beyond its 512 bytes of stack. Those of tracepoints run with preemption off (trace_call_bpf),
 * one at a time on a CPU, and have place 0. A uprobe's only stays on its CPU (bpf_prog_run_array_sleepable, 6.0): with
 * preempt=full or PREEMPT_RT another task's programs may run within it, so that it takes a place of its own. */
#define AF_SCRATCHES 9
/* registrations of a slot: of a generation in [from, to), begun before `before`; armed: those that can deliver */
struct af_wanted { u64 before; u32 from; u32 to; u32 armed; u32 gap; };
struct af_noticed { u64 addr; u32 what; u32 events; u32 index; u32 repeat; u32 flags; u32 gap; };
struct af_scratch {
	u64 taken;         /* by a uprobe's program that is not over */
	u64 place;
	struct af_epoll_event events[43]; /* AF_CHUNK and what makes 511 bytes a safe length */
	struct af_noticed noticed[AF_CHUNK];
	u32 noticed_count;
	u32 what;
	u32 first;
	u32 count;
	u32 flags;
	u32 in_batch;      /* AF_PENDING_… */
	u32 registered;    /* the slot that is being destroyed is */
	u32 found;         /* entries of `items` */
	u32 picked_place;  /* of a slot in a crash record */
	u32 hopeless;      /* no call can answer what is delivered */
	u32 same;          /* another delivery for the slot in this batch */
	u32 repeat;        /* the delivery continues a run: of the batch before, and the first of this one */
	struct af_path_key path;
	struct af_path_key file; /* the file of that path, as exec_paths knows it */
	struct af_reg reg;       /* copies of what is in maps that others may change meanwhile */
	struct af_reg other;
	struct af_reg older;
	struct af_trigger_args args;
	u64 items[AF_CLOSING];   /* epitems of the number that is being closed */
	u32 suspect;             /* enum af_suspect of what is being sent */
	struct af_stack stack;
	u64 words[AF_STACK_WORDS];
	u64 judge;         /* of the slot that is being settled: AF_S_PUT_OFF */
	u32 send;          /* AF_SETTLED_… */
	u32 elsewhere;     /* it is registered, and only where this thread does not wait now */
	/* what the functions behind AF_CALL are given */
	struct af_slot_key key;
	struct af_wanted wanted;
	u32 waited;
	u32 at;            /* of `noticed` */
	u64 userdata;
	u64 caller;
	u64 hash;          /* of the stack, and the id made of it */
	s32 stack_id;
	s32 fds[2];        /* on which a call made progress; -1: none */
	u32 only;          /* of events of these kinds; 0: of all */
};

BPF_F_TABLE("array", int, struct af_rec, recorder, (AF_RING_RECORDS + 1) * AF_CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", int, struct af_lifetime, lifetimes, AF_LIFE_RECORDS * AF_CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", int, struct af_ring_head, lifetime_heads, AF_CPUS, BPF_F_MMAPABLE);
BPF_RINGBUF_OUTPUT(urgent, AF_URGENT_PAGES);
BPF_F_TABLE("hash", u32, struct af_span, spans, AF_MAX_TARGETS, 0);
BPF_F_TABLE("hash", s32, struct af_stack, stacks, AF_MAX_STACKS, 0);
BPF_F_TABLE("hash", s32, struct af_stack_bytes, stack_bytes, AF_MAX_STACK_BYTES, 0);
BPF_F_TABLE("percpu_array", int, struct af_stack_bytes, stack_scratch, AF_SCRATCHES, 0);
BPF_F_TABLE("percpu_array", int, u64, counters, AF_C_MAX, 0);
BPF_F_TABLE("percpu_array", int, struct af_scratch, scratch, AF_SCRATCHES, 0);
BPF_F_TABLE("array", int, struct af_slot, empty_slot, 1, 0);
BPF_F_TABLE("array", int, struct af_reg, empty_reg, 1, 0);
BPF_F_TABLE("array", int, struct af_thread, empty_thread, 1, 0);
BPF_F_TABLE("array", int, struct af_control, control, 1, 0);
BPF_F_TABLE("hash", u32, struct af_target, targets, AF_MAX_TARGETS, 0);
BPF_F_TABLE("hash", u64, struct af_thread, threads, AF_MAX_THREADS, 0);
BPF_F_TABLE("hash", struct af_slot_key, struct af_slot, slots, AF_MAX_SLOTS, 0);
BPF_F_TABLE("hash", struct af_reg_key, struct af_reg, regs, AF_MAX_SLOTS, 0);
BPF_F_TABLE("lru_hash", struct af_fd_key, struct af_reg, numbers, AF_MAX_NUMBERS, 0);
BPF_F_TABLE("lru_hash", u64, struct af_dup, dups, 4096, 0);
BPF_F_TABLE("lru_hash", struct af_fd_key, struct af_failed, failed, 1024, 0);
BPF_F_TABLE("lru_hash", struct af_slot_key, struct af_failed, failed_slots, 1024, 0);
BPF_F_TABLE("hash", struct af_pending_key, struct af_pending_slot, pending, AF_MAX_SLOTS, 0);
BPF_F_TABLE("hash", struct af_slot_key, u64, objects, AF_MAX_SLOTS, 0);
BPF_F_TABLE("hash", struct af_slot_key, u64, inner, AF_MAX_SLOTS, 0);
BPF_F_TABLE("lru_hash", u64, u32, waiters, 4096, 0);
BPF_F_TABLE("lru_hash", u64, struct af_name, names, 4096, 0);
BPF_F_TABLE("hash", u32, u32, children, 4096, 0);
BPF_F_TABLE("hash", struct af_path_key, u32, exec_paths, 64, 0);
BPF_F_TABLE("lru_hash", struct af_call_key, struct af_entered, entered, AF_MAX_ENTERED, 0);
BPF_F_TABLE("hash", struct af_site_key, u64, sites, AF_MAX_SITES, 0);
BPF_F_TABLE("array", int, struct af_share, shares, AF_SHARES, 0);
BPF_F_TABLE("prog", int, int, prog, 4, 0);
BPF_F_TABLE("prog", int, int, hits, 4, 0);
