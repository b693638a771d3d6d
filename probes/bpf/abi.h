/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The one definition of every record and map value that crosses from the kernel side to user space.
 * probes/abi.py decodes them; tests/unit/probes/test_abi.py compiles this file with cc and compares
 * every size and offset. Plain C, fixed-width types, natural alignment, no padding left implicit.
 */
#ifndef AFTERFREE_ABI_H
#define AFTERFREE_ABI_H

#define AF_ABI_VERSION 4

/* kinds of stream records (struct af_rec.kind) */
enum af_kind {
	AF_CREATED = 1,     /* addr = slot, gen = the new generation */
	AF_DESTROYED = 2,   /* addr = slot, gen = the generation that ended, arg bit 0 = it still held its object */
	AF_DISOWNED = 3,    /* addr = slot */
	AF_DISPATCHED = 4,  /* addr = object; gen and arg (low half of the address) = its slot when known */
	AF_ADD_BEGUN = 5,   /* epoll_ctl(ADD) entered on what is not registered yet: addr = userdata, arg = events */
	AF_ADDED = 6,       /* epoll_ctl(ADD) returned ret (negative errno on failure) */
	AF_MODIFIED = 7,    /* epoll_ctl(MOD) returned ret: addr = userdata, arg = events */
	AF_DEL_BEGUN = 8,   /* epoll_ctl(DEL) entered on a registration that exists */
	AF_REMOVED = 9,     /* epoll_ctl(DEL) returned ret */
	AF_CLOSE_BEGUN = 10, /* close entered on an fd that is registered */
	AF_CLOSED = 11,     /* close returned ret; dup2/dup3 over an open fd and close_range count too */
	AF_DUPPED = 12,     /* fd = old, ret = new fd */
	AF_WAITER_SEEN = 13, /* first wait of this thread on epfd; a batch opens with its first AF_DELIVERED */
	AF_DELIVERED = 14,  /* addr = userdata, arg = events, ret = index in the batch, stack = batch number,
			     * fd = consecutive batches before this one, gen of the slot, enter = wait entered */
	AF_BATCH_CLOSED = 15, /* same thread entered its next wait: arg = batch */
	/* 16 was an accept */
	AF_FORKED = 17,     /* arg = child tgid; the child shares every open file description */
	AF_FORK_ENDED = 18, /* arg = child tgid; it exec'ed or exited */
	AF_SIGNALED = 19,   /* a fatal signal was generated: arg = signal, addr = fault address */
	AF_EXECED = 20,
	AF_EXITED = 21,     /* the last thread of the process left: arg = its status, as of wait(2) */
	AF_PROGRESS = 22,   /* only while a spin is suspected: a call consumed or produced on fd */
	AF_EPOLL_CREATED = 23, /* ret = new epoll fd */
	AF_SPIN_SUSPECTED = 24, /* addr = slot, arg = its deliveries without known progress: progress should be watched */
};

/* af_rec.flags */
#define AF_F_INFERRED 1u   /* the slot or registration predates the attach */
#define AF_F_REPEAT 2u     /* one of a collapsed run of consecutive deliveries */
#define AF_F_AGAIN 16u     /* not the slot's first delivery of its batch: another registration's */
#define AF_F_NO_SLOT 4u    /* the userdata is reserved or not a slot */
#define AF_F_UNKNOWN 8u    /* the slot or registration was never seen */
#define AF_F_NOT_JUDGED 32u /* a free within a batch: how far the loop was is not known */
#define AF_F_REFCOUNT 64u  /* a second destroy, and the slot was used as if alive between the two */
#define AF_F_NESTED 128u   /* the batch may be over: a wait on another instance, as deep, came after it */
#define AF_F_HELD 512u      /* a free within an outer batch: the inner one delivered the slot as well */
#define AF_F_PROVEN 1024u    /* a free within a batch: the loop came to the delivery afterwards */
#define AF_F_OWED 2048u      /* no event of its own: what the life that ends here had counted and not told */
#define AF_F_HOPELESS 256u /* hot: no call can make progress on it (only HUP or ERR, or its fd is closed) */

/* one fact; 64 bytes. ts is the exit (or the hit) and enter the entry of the call, CLOCK_MONOTONIC ns. */
struct af_rec {
	__u32 seq;   /* per CPU, counts every record ever written to that CPU's ring; written last */
	__u16 kind;
	__u16 flags;
	__u64 ts;
	__u64 enter; /* uprobe hits: the probed address (run-time ip) */
	__u64 addr;
	__u32 tgid;
	__u32 tid;
	__u32 gen;
	__s32 fd;
	__s32 epfd;
	__s32 ret;
	__u32 arg;
	__s32 stack; /* id in the stacks map; negative errno when there is none */
};

/* when, where and who; ts == 0 means it was not seen */
struct af_at {
	__u64 enter;
	__u64 ts;
	__u64 ip;    /* user instruction pointer (after the syscall instruction for calls) */
	__u32 tid;
	__s32 stack;
};

enum af_slot_state { AF_SLOT_UNKNOWN = 0, AF_SLOT_LIVE = 1, AF_SLOT_FREE = 2 };

/* af_slot.flags */
#define AF_S_INFERRED 1ull       /* live before the attach (fdinfo), or first seen otherwise */
#define AF_S_CREATE_SEEN 2ull
#define AF_S_REBORN_LIVE 4ull    /* created again without a destroy in between: two owners */
#define AF_S_CLOSED 8ull         /* its registered fd was closed */
#define AF_S_DELETED 16ull       /* its registration was removed with EPOLL_CTL_DEL */
#define AF_S_ORPHANED 32ull      /* its fd was closed, and the registration existed afterwards */
#define AF_S_CLOSE_IN_BATCH 64ull /* fd closed by another thread while a batch with its delivery was open */
#define AF_S_UNBORN 128ull       /* registered, and create has not given it out: no slot as long as that is so */
#define AF_S_ADD_FREED 512ull    /* EPOLL_CTL_ADD or MOD with a slot that was free */
#define AF_S_CLOSE_BY_OTHER 1024ull /* close by a thread other than the one that waits on the instance */
#define AF_S_DESTROY_BY_OTHER 2048ull
#define AF_S_ADD_BY_OTHER 4096ull
#define AF_S_DEL_BY_OTHER 8192ull
#define AF_S_CLOSE_PENDING 16384ull /* its fd was closed, and the registration existed afterwards: to be judged */
#define AF_S_WAITER_KNOWN 32768ull
#define AF_S_PENDING 65536ull    /* destroyed while registered: judged when the destroying call is over */
#define AF_S_ENDED_AFTER 131072ull /* its registration was ended after the destroy had begun, before it was judged */
#define AF_S_USED_AFTER 262144ull /* epoll_ctl, close or dispatch on it after its destroy */
#define AF_S_LINKS_FULL 524288ull /* more registrations at once than AF_SLOT_LINKS: the rest is not followed */
#define AF_S_EDGE 1048576ull      /* all of its registrations are edge-triggered: it cannot spin */
#define AF_S_NOT_JUDGED 2097152ull /* freed within a batch: how far its loop was is not known */
#define AF_S_FREED_TOLD 8388608ull /* that it was freed while registered was told */
#define AF_S_REARMED 16777216ull /* freed, judged, and then a MOD armed its registration again */
#define AF_S_TWICE_PENDING 33554432ull /* destroyed while free: to be judged, unless the create under way fails */
#define AF_S_DOUBLED 4194304ull  /* this or an older life was destroyed twice: the pool may give it out twice */

#define AF_SLOT_LINKS 4

/* one registration of a slot: the kernel's own identity of it, and which of its lives it is */
struct af_link {
	__u64 ep;     /* struct eventpoll *; 0: an unused link */
	__u64 file;   /* struct file *; 0: read from fdinfo and not asked for yet */
	__u64 added;  /* af_reg.add.enter: tells it from a later one of the same (ep, file, fd) */
	__s32 fd;
	__s32 epfd;
	__u32 gen;    /* the slot's generation that registered it */
	__u32 events; /* of a link whose file is not known yet */
};

/* one life of one slot address; also the lifetime record written at destroy */
struct af_slot {
	__u64 addr;
	__u32 tgid;
	__u32 epoch;                 /* of the process: af_target.epoch */
	__u32 gen;
	__u32 state;
	__u64 flags;
	struct af_at create;
	struct af_at add;
	struct af_at del;
	struct af_at close;
	struct af_at destroy;
	struct af_at prev_destroy;   /* of the generation before this one */
	struct af_at again;          /* the last destroy while it was free */
	__u64 first_delivery;        /* wait exit */
	__u64 last_delivery;         /* wait exit */
	__u64 last_delivery_enter;   /* wait enter of the same call */
	__u64 last_dispatch;
	__u64 first_after_close;     /* first delivery that became visible after the close returned */
	__u64 last_after_close;
	__u64 object;                /* inner object pointer read from the slot at ADD; 0 unknown */
	__u64 idle_since;            /* first delivery without progress since */
	__u64 hup_since;             /* first delivery of the unbroken run with EPOLLHUP; 0 none */
	__u64 idle_reported;         /* of `idle`, carried by suspicions already sent */
	__u64 idle;                  /* deliveries since the last progress on its file that we know of */
	__u32 deliveries;
	__u32 dispatches;
	__u32 after_close;           /* deliveries visible after close and before destroy */
	__u32 stale;                 /* deliveries visible after destroy */
	__u32 stale_reported;        /* of these, carried by suspicions already sent */
	__u32 double_destroys;
	__u32 last_batch;
	__u32 last_tid;              /* thread that got the last delivery */
	__u32 last_index;            /* of the last delivery in its batch */
	__u32 consecutive;           /* consecutive batches of one thread with a delivery of it */
	__u32 live_from;             /* first generation of the current life that no destroy has ended */
	__u32 waiter;                /* thread that waits on its instance */
	__s32 fd;                    /* of the current or last registration of this generation; -1 none */
	__s32 epfd;
	__s32 old_fd;                /* of a registration of an older generation that existed when asked; -1 none */
	__s32 old_epfd;
	__u32 old_gen;
	__u32 recycled;              /* deliveries while an older registration existed */
	__u32 recycled_reported;
	__u32 batch_count;           /* deliveries in last_batch: one registration gives at most one a batch */
	__u32 undispatched;          /* of these, not dispatched yet */
	__u32 stale_dispatches;      /* dispatches after destroy */
	__u32 adder;                 /* thread that registered it before a create gave it out; 0 none */
	__u32 held_batch;            /* of last_tid: an outer batch that holds an undispatched delivery of it; 0 none */
	__u32 held_index;
	__u32 last_events;           /* of the last delivery: EPOLL… */
	__u64 dispatch_site;         /* of the first dispatch since the last batch: where it was called from */
	__u32 doubtful;              /* of `undispatched`: a handler called by another one, or a second one, may have answered */
	__u32 progressed;            /* calls that made progress since `idle` began to count */
	__u32 taken;                 /* of a TCP connection, when it was last looked at: copied_seq */
	__u32 arrived;               /* data_segs_in */
	struct af_link links[AF_SLOT_LINKS];
};

/* af_reg.state: what the kernel answered when it was asked last */
enum af_reg_state { AF_REG_NONE = 0, AF_REG_ADDING = 1, AF_REG_LIVE = 2, AF_REG_ORPHAN = 3, AF_REG_ENDED = 4 };

/* af_reg.flags */
#define AF_R_INFERRED 1u      /* it predates the attach */
#define AF_R_BY_CLOSE 4u      /* ended by close, or closed and surviving it (state ORPHAN) */
#define AF_R_BY_DEL 8u        /* ended by EPOLL_CTL_DEL */
#define AF_R_FORKED 16u       /* closed while forked children may have had the description */
#define AF_R_REPORTED 32u     /* that it outlived its close was said */
#define AF_R_NOT_ASKED 64u    /* the kernel could not be asked (no BTF, or too many items): fdinfo must tell */
#define AF_R_TABLE_SHARED 128u /* other processes share the descriptor table: who closed it may not be seen */
#define AF_R_ADD_FAILED 256u   /* there was none: the EPOLL_CTL_ADD at `add` returned -error */

/* What we keep beside the kernel's registration (ep, file, fd): who made it, when, for which life of which slot. */
struct af_reg {
	__u64 userdata;
	__u64 slot;       /* userdata after the profile's mask and offset; 0 when reserved */
	__u64 ep;         /* struct eventpoll * */
	__u64 file;       /* struct file * */
	__u64 item;       /* struct epitem *: where the kernel is asked; 0 not known yet */
	__u64 ino;        /* inode number: a socket's is unique, /proc/PID/fd shows it */
	__u32 tgid;
	__u32 epoch;      /* of the process */
	__u32 gen;        /* the slot's generation when it was made */
	__s32 epfd;
	__s32 fd;
	__u32 events;
	__u32 state;
	__u32 flags;
	__u32 error;      /* with AF_R_ADD_FAILED: errno; else 0 */
	__s32 dup_fd;     /* the newest duplicate of its file that was seen and is open; -1 none */
	struct af_at add;
	struct af_at mod;
	struct af_at end; /* DEL or close; of an orphan: the close that left it behind */
	struct af_at dup; /* who made dup_fd */
};

/* what the kernel side noticed; a fact pattern, not a verdict */
enum af_suspect {
	AF_SUSPECT_STALE_DELIVERY = 1,   /* delivery for a free slot */
	AF_SUSPECT_RECYCLED_DELIVERY = 2, /* delivery for a live slot that has an older live registration */
	AF_SUSPECT_STALE_DISPATCH = 3,   /* dispatch with a null object or an object of a free slot */
	AF_SUSPECT_DOUBLE_DESTROY = 4,
	AF_SUSPECT_ALIASED_SLOT = 5,
	AF_SUSPECT_FREED_REGISTERED = 6,
	AF_SUSPECT_FREED_IN_BATCH = 7,
	AF_SUSPECT_OUTLIVES_CLOSE = 8,
	AF_SUSPECT_FAILED_REMOVAL = 9,
	AF_SUSPECT_BAD_CLOSE = 10,
	AF_SUSPECT_HOT = 11,
};

enum af_urgent_type { AF_URGENT_SUSPICION = 1, AF_URGENT_CRASH = 2, AF_URGENT_LIFECYCLE = 3 };

#define AF_SLOT_BYTES 128
#define AF_COMM 16

/* first 16 bytes of every urgent message */
struct af_urgent_head {
	__u16 type;
	__u16 version;
	__u32 size;   /* whole message, bytes */
	__u32 what;   /* enum af_suspect, or enum af_kind for lifecycle */
	__u32 nbytes; /* valid bytes of `bytes` */
};

struct af_suspicion {
	struct af_urgent_head head;
	struct af_rec trigger;
	__u64 wait_enter;  /* of the open batch of the triggering thread */
	__u64 wait_exit;
	__u32 batch;
	__u32 batch_open;
	__u32 forks;       /* forked children that may still share descriptions */
	__u32 last_child;  /* the newest of them */
	__u64 forked_at;
	struct af_slot slot;
	struct af_reg reg;    /* the registration concerned; state NONE when unknown */
	struct af_reg other;  /* aliased: the other one; recycled: the current generation's */
	char comm[AF_COMM];
	__u8 bytes[AF_SLOT_BYTES]; /* the slot's memory at that moment */
};

#define AF_STACK_REGS 8
#define AF_STACK_BYTES 1024

/* What unwinding by call frame information needs, once for each new stack id. A function without a frame
 * pointer (libc's wrappers) hides its caller from the kernel's walk, which the stack id comes from. */
struct af_stack_bytes {
	__u64 regs[AF_STACK_REGS]; /* rip, rsp, rbp, rbx, r12, r13, r14, r15 */
	__u32 tgid;
	__u32 nbytes;              /* valid bytes of `bytes`; 0 when the stack was not resident */
	__u8 bytes[AF_STACK_BYTES]; /* from the stack pointer up */
};

#define AF_CRASH_STACK 8192
#define AF_CRASH_SLOTS 8
#define AF_CRASH_SLOT_BYTES 256
#define AF_CRASH_EVENTS 128   /* of the open batch */
#define AF_CRASH_NEAR 64      /* bytes kept of what a register points at */
#define AF_CRASH_REGS 15      /* general registers in struct pt_regs order, without rsp */
#define AF_CRASH_LINKS 32
#define AF_CRASH_ON_STACK 8 /* addresses of slots that are looked for on the stack */

/* a slot that the crashing thread held: in a register, through its object, on its stack, or in its open batch */
struct af_crash_slot {
	__u32 registers; /* bit i: register i of `regs` holds its address; 30: the stack does; 31: its last stale event */
	__u32 objects;   /* bit i: register i of `regs` holds the address of its object */
	__u32 nbytes;    /* valid bytes of `bytes` */
	__u32 in_batch;  /* 1 + index of its first event in the open batch; 0: not in it */
	struct af_slot slot;
	struct af_reg reg; /* the registration of its generation, whatever its state; NONE when there is none */
	__u8 bytes[AF_CRASH_SLOT_BYTES];
};

struct af_crash {
	struct af_urgent_head head;
	struct af_rec trigger;  /* AF_SIGNALED */
	__u64 fault_addr;
	__u64 fault_ip;
	__u64 regs[21];         /* struct pt_regs order of the machine */
	__s32 si_code;
	__u32 batch;
	__u64 wait_enter;       /* of the open batch; 0 when none is open */
	__u64 wait_exit;
	__u32 nslots;
	__u32 nevents;          /* valid entries of `events` */
	__u32 near_valid;       /* bit i: near[i] was readable */
	__u32 nlinks;
	char comm[AF_COMM];
	__u64 links[AF_CRASH_LINKS]; /* the free-list link of the first free slot of `slots`, the link there, and so on */
	__u8 near[AF_CRASH_REGS][AF_CRASH_NEAR]; /* what register i points at */
	__u8 events[AF_CRASH_EVENTS * 12];       /* struct epoll_event of the open batch, packed, as it is now */
	struct af_crash_slot slots[AF_CRASH_SLOTS];
	__u8 stack[AF_CRASH_STACK]; /* user stack bytes from the stack pointer up */
};

#define AF_PATH 256

struct af_lifecycle {
	struct af_urgent_head head;
	struct af_rec trigger;  /* AF_EXECED, AF_EXITED, AF_FORKED, AF_FORK_ENDED, AF_SPIN_SUSPECTED */
	char comm[AF_COMM];
	char path[AF_PATH];     /* exec: the file name as given */
};

/* per-CPU counters, index = enum af_counter */
enum af_counter {
	AF_C_RECORDS = 0,
	AF_C_URGENT_LOST = 1,      /* urgent ring full */
	AF_C_SLOTS_FULL = 2,
	AF_C_REGS_FULL = 3,
	AF_C_PENDING_FULL = 4,     /* slots destroyed while registered, beyond what a thread may leave to be judged */
	AF_C_THREADS_FULL = 5,
	AF_C_EVENTS_TRUNCATED = 6, /* deliveries of one wait beyond what is read */
	AF_C_READ_FAULT = 7,       /* user memory not resident */
	AF_C_STACK_FAILED = 8,
	AF_C_TAILCALL_FAILED = 9,
	AF_C_SUSPICIONS = 10,
	AF_C_REPEATS = 11,         /* collapsed repeated deliveries */
	AF_C_LIFETIMES = 12,
	AF_C_DELIVERIES = 13,
	AF_C_HITS_CREATE = 14,
	AF_C_HITS_DESTROY = 15,
	AF_C_HITS_DISOWN = 16,
	AF_C_HITS_DISPATCH = 17,
	AF_C_ITEMS_TRUNCATED = 18, /* a file with more registrations than are looked at */
	AF_C_UNKNOWN_SLOT = 19,    /* deliveries for a userdata never seen */
	AF_C_SUSPECTS_DROPPED = 20, /* suspicious deliveries of one wait beyond what is reported at once */
	AF_C_LINKS_FULL = 21,      /* registrations of one slot beyond AF_SLOT_LINKS */
	AF_C_OBJECTS_FULL = 22,
	AF_C_RANGES = 23,          /* calls of close_range: what they closed is not followed one by one */
	AF_C_ENTRY_UNSEEN = 24,    /* hits whose call was entered before watching: their argument is not known */
	AF_C_BATCHES_FULL = 25,    /* nested waits beyond AF_BATCHES: the outermost is forgotten */
	AF_C_NOT_JUDGED = 26,      /* frees within a batch of which is not known how far its loop was */
	AF_C_ADDS = 27,            /* successful ADDs of what is not reserved */
	AF_C_ADDS_CREATED = 28,    /* of these, with a slot that create gave out, or was to give out */
	AF_C_AUDIT_ADD = 29,       /* ADD succeeded on what the kernel had said exists */
	AF_C_AUDIT_MISSING = 30,   /* DEL or MOD: ENOENT on what the kernel had said exists */
	AF_C_AUDIT_UNSEEN = 31,    /* a delivery of a registration never seen, in a process watched from its start */
	AF_C_IO_URING = 32,        /* io_uring requests of watched processes */
	AF_C_SHARED_TABLES = 33,   /* processes made that share a watched one's descriptor table (CLONE_FILES) */
	AF_C_NOT_REGISTERED = 34,  /* DEL or MOD: ENOENT or EBADF on what was never seen registered */
	AF_C_DESTROYS_UNKNOWN = 35, /* destroys of what create never gave out, in a process watched from its start */
	AF_C_ADDS_FREED = 36,      /* ADDs of an address whose slot was freed, and no create followed: another object's */
	AF_C_BAD_CLOSES = 37,      /* closes that failed on numbers of which nothing is known */
	AF_C_PREEMPTED = 38,       /* hits of probed functions for which no place to work on was free on their CPU */
	AF_C_MAX = 40,
};

/* header of one CPU's mmapable ring; one 64-byte cell at index 0 of that CPU's part */
struct af_ring_head {
	__u64 written;  /* records ever written by this CPU; the next goes to 1 + written % capacity */
	__u64 pad[7];
};

/* one lifetime in the lifetimes ring */
struct af_lifetime {
	__u32 seq;
	__u32 cpu;
	__u64 signature; /* AF_SIG_* bits */
	struct af_slot slot;
};

/* af_lifetime.signature: what happened, in which order and by whom. "other" = not the waiting thread. */
#define AF_SIG_ADD 1ull
#define AF_SIG_ADD_OTHER 2ull
#define AF_SIG_DELIVERED 4ull
#define AF_SIG_DEL 8ull
#define AF_SIG_DEL_OTHER 16ull
#define AF_SIG_CLOSE 32ull
#define AF_SIG_CLOSE_OTHER 64ull
#define AF_SIG_AFTER_CLOSE 128ull   /* delivered between close and destroy: the near miss */
#define AF_SIG_DESTROY_OTHER 256ull
#define AF_SIG_CLOSE_IN_BATCH 512ull
#define AF_SIG_INFERRED 1024ull
#define AF_SIG_ORPHANED 2048ull
#define AF_SIG_DEL_AFTER_CLOSE 4096ull
#define AF_SIG_REGISTERED 8192ull   /* destroyed while registered */
#define AF_SIG_ENDED_AFTER 16384ull /* DEL or close came after the destroy had begun, and before a wait */
#define AF_SIG_WAITER_KNOWN 32768ull
#define AF_SIG_NOT_JUDGED 65536ull  /* freed within a batch: how far its loop was is not known */

#endif
