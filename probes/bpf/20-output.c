/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The three outputs (recorder, lifetimes, urgent), the counters, and who and where we are.
 */
static inline __attribute__((always_inline)) void af_count(u32 which)
{
	int key = which;
	u64 *value = counters.lookup(&key);
	if (value)
		*value += 1;
}

/* What suspicions leave to crashes, execs and ends, however many there are: 29 crashes in 4 MiB. */
#define AF_URGENT_KEPT (AF_URGENT_PAGES * 4096ull / 8)

static inline __attribute__((always_inline)) void *af_reserve(void *ring, u64 size, u64 flags)
{
	if (size == sizeof(struct af_suspicion) &&
	    bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) > AF_URGENT_PAGES * 4096ull - AF_URGENT_KEPT)
		return 0;
	return bpf_ringbuf_reserve(ring, size, flags);
}

/* bcc 0.26 has no method for the query, and no other way to name a map: `urgent.ringbuf_reserve()` becomes this
 * call, with the map as its first argument. */
#define bpf_ringbuf_reserve(ring, size, flags) af_reserve(ring, size, flags)

static inline __attribute__((always_inline)) u32 af_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static inline __attribute__((always_inline)) struct af_target *af_target_now(void)
{
	u32 tgid = af_tgid();
	return targets.lookup(&tgid);
}

static inline __attribute__((always_inline)) struct af_thread *af_thread_now(void)
{
	u64 id = bpf_get_current_pid_tgid();
	struct af_thread *t = threads.lookup(&id);
	if (t)
		return t;
	int zero = 0;
	struct af_thread *empty = empty_thread.lookup(&zero);
	if (!empty)
		return 0;
	threads.insert(&id, empty);
	t = threads.lookup(&id);
	if (!t)
		af_count(AF_C_THREADS_FULL);
	return t;
}

/* the user-space instruction pointer of a system call: the instruction after `syscall` */
static inline __attribute__((always_inline)) u64 af_user_ip(void)
{
	u64 ip = 0;
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
	bpf_probe_read_kernel(&ip, sizeof(ip), (void *)((u64)regs + __builtin_offsetof(struct pt_regs, ip)));
	return ip;
}

/* Registers and stack bytes of the first hit with this stack id. Two threads at once: the first one wins.
 * Another program that interrupts this one on this CPU may mix its bytes into the scratch area; who unwinds
 * compares with the kernel's own walk. */
static inline __attribute__((always_inline)) void af_keep_stack(s32 id)
{
	if (stack_bytes.lookup(&id))
		return;
	int zero = 0;
	struct af_stack_bytes *s = stack_scratch.lookup(&zero);
	if (!s)
		return;
	u64 r = (u64)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
	struct pt_regs regs = {};
	bpf_probe_read_kernel(&regs, sizeof(regs), (void *)r);
	s->regs[0] = regs.ip;
	s->regs[1] = regs.sp;
	s->regs[2] = regs.bp;
	s->regs[3] = regs.bx;
	s->regs[4] = regs.r12;
	s->regs[5] = regs.r13;
	s->regs[6] = regs.r14;
	s->regs[7] = regs.r15;
	s->tgid = af_tgid();
	s->nbytes = AF_STACK_BYTES;
	if (bpf_probe_read_user(s->bytes, AF_STACK_BYTES, (void *)regs.sp)) {
		s->nbytes = AF_STACK_SHORT;
		if (bpf_probe_read_user(s->bytes, AF_STACK_SHORT, (void *)regs.sp))
			s->nbytes = 0;
	}
	stack_bytes.insert(&id, s);
}

static inline __attribute__((always_inline)) s32 af_stack_id(void *ctx)
{
	s32 id = stacks.get_stackid(ctx, BPF_F_USER_STACK | BPF_F_FAST_STACK_CMP);
	if (id < 0)
		af_count(AF_C_STACK_FAILED);
	else
		af_keep_stack(id);
	return id;
}

/* One 64-byte store. `seq` last and `written` after it: a reader that sees `written` unchanged around its
 * copy, and skips what was overwritten meanwhile, has whole records (x86 and BPF keep stores in order). */
static inline __attribute__((always_inline)) void af_record(u16 kind, u16 flags, u64 ts, u64 enter, u64 addr, u32 gen,
					s32 fd, s32 epfd, s32 ret, u32 arg, s32 stack)
{
	int base = bpf_get_smp_processor_id() * (AF_RING_RECORDS + 1);
	struct af_ring_head *head = (struct af_ring_head *)recorder.lookup(&base);
	if (!head)
		return;
	u64 written = head->written;
	int index = base + 1 + (int)(written & (AF_RING_RECORDS - 1));
	struct af_rec *r = recorder.lookup(&index);
	if (!r)
		return;
	u64 id = bpf_get_current_pid_tgid();
	r->kind = kind;
	r->flags = flags;
	r->ts = ts;
	r->enter = enter;
	r->addr = addr;
	r->tgid = id >> 32;
	r->tid = (u32)id;
	r->gen = gen;
	r->fd = fd;
	r->epfd = epfd;
	r->ret = ret;
	r->arg = arg;
	r->stack = stack;
	*(volatile u32 *)&r->seq = (u32)written;
	*(volatile u64 *)&head->written = written + 1;
}

static inline __attribute__((always_inline)) void af_lifetime_out(struct af_slot *slot, u64 signature)
{
	int cpu = bpf_get_smp_processor_id();
	struct af_ring_head *head = lifetime_heads.lookup(&cpu);
	if (!head)
		return;
	u64 written = head->written;
	int index = cpu * AF_LIFE_RECORDS + (int)(written & (AF_LIFE_RECORDS - 1));
	struct af_lifetime *l = lifetimes.lookup(&index);
	if (!l)
		return;
	l->cpu = cpu;
	l->signature = signature;
	__builtin_memcpy(&l->slot, slot, sizeof(*slot));
	*(volatile u32 *)&l->seq = (u32)written;
	*(volatile u64 *)&head->written = written + 1;
	af_count(AF_C_LIFETIMES);
}

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
	u32 kind;
};

/* Send the evidence. slot, reg and other may be null. */
static inline __attribute__((always_inline)) void af_suspect(u32 what, struct af_trigger_args *a, struct af_thread *t,
					 struct af_slot *slot, struct af_reg *reg, struct af_reg *other)
{
	struct af_suspicion *s = urgent.ringbuf_reserve(sizeof(struct af_suspicion));
	if (!s) {
		af_count(AF_C_URGENT_LOST);
		return;
	}
	af_count(AF_C_SUSPICIONS);
	u64 id = bpf_get_current_pid_tgid();
	s->head.type = AF_URGENT_SUSPICION;
	s->head.version = AF_ABI_VERSION;
	s->head.size = sizeof(*s);
	s->head.what = what;
	s->head.nbytes = 0;
	s->trigger.seq = 0;
	s->trigger.kind = a->kind;
	s->trigger.flags = 0;
	s->trigger.ts = a->ts;
	s->trigger.enter = a->enter;
	s->trigger.addr = a->addr;
	s->trigger.tgid = id >> 32;
	s->trigger.tid = (u32)id;
	s->trigger.gen = a->gen;
	s->trigger.fd = a->fd;
	s->trigger.epfd = a->epfd;
	s->trigger.ret = a->ret;
	s->trigger.arg = a->arg;
	s->trigger.stack = a->stack;
	s->wait_enter = t ? t->wait_enter : 0;
	s->wait_exit = t ? t->wait_exit : 0;
	s->batch = t ? t->batch : 0;
	s->batch_open = t ? t->batch_open : 0;
	if (slot)
		__builtin_memcpy(&s->slot, slot, sizeof(*slot));
	else
		__builtin_memset(&s->slot, 0, sizeof(s->slot));
	if (reg)
		__builtin_memcpy(&s->reg, reg, sizeof(*reg));
	else
		__builtin_memset(&s->reg, 0, sizeof(s->reg));
	if (other)
		__builtin_memcpy(&s->other, other, sizeof(*other));
	else
		__builtin_memset(&s->other, 0, sizeof(s->other));
	bpf_get_current_comm(s->comm, sizeof(s->comm));
	__builtin_memset(s->bytes, 0, sizeof(s->bytes));
	if (slot) {
		if (!bpf_probe_read_user(s->bytes, AF_SLOT_SIZE, (void *)slot->addr))
			s->head.nbytes = AF_SLOT_SIZE;
		else
			af_count(AF_C_READ_FAULT);
	}
	urgent.ringbuf_submit(s, 0);
}
