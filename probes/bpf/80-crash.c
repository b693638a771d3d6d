/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * A fatal signal: everything that explains it and will be gone with the process, in one message.
 */

#define AF_CRASH_SPAN_NS 1000000000ull
#define AF_LOOP _Pragma("clang loop unroll(disable)")

/* The entry of `addr` among the slots of this message; a new one when it is known and there is room. */
static inline __attribute__((always_inline)) struct af_crash_slot *af_crash_slot(struct af_crash *c, u32 tgid, u64 addr)
{
	struct af_slot *slot = addr >= 4096 ? af_slot_find(tgid, addr) : 0;
	if (!slot)
		return 0;
	u32 n = c->nslots;
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_SLOTS; i++)
		if (i < n && c->slots[i].slot.addr == addr)
			return &c->slots[i];
	if (n >= AF_CRASH_SLOTS)
		return 0;
	c->nslots = n + 1;
	struct af_crash_slot *s = &c->slots[n];
	s->registers = 0;
	s->objects = 0;
	s->in_batch = 0;
	s->nbytes = 0;
	__builtin_memcpy(&s->slot, slot, sizeof(*slot));
	struct af_reg *reg = slot->fd >= 0 ? af_reg_find(tgid, slot->epfd, slot->fd) : 0;
	if (reg && reg->slot == addr)
		__builtin_memcpy(&s->reg, reg, sizeof(*reg));
	else
		__builtin_memset(&s->reg, 0, sizeof(s->reg));
	if (!bpf_probe_read_user(s->bytes, AF_CRASH_SLOT_SIZE, (void *)addr))
		s->nbytes = AF_CRASH_SLOT_SIZE;
	else
		af_count(AF_C_READ_FAULT);
	return s;
}

/* Candidates are collected first and copied by one loop: a copy at each place would be too much for the verifier. */
static inline __attribute__((always_inline)) void af_crash_pick(struct af_scratch *picked, u64 addr, u32 what, u32 index)
{
	u32 n = picked->pending_count;
	if (n >= AF_CHUNK)
		return;
	picked->pending[n].addr = addr;
	picked->pending[n].what = what;
	picked->pending[n].index = index;
	picked->pending_count = n + 1;
}

#define AF_HELD_REGISTER 0
#define AF_HELD_OBJECT 1
#define AF_HELD_BATCH 2

static inline __attribute__((always_inline)) void af_crash_registers(struct af_crash *c, struct af_scratch *picked, u32 tgid)
{
	c->near_valid = 0;
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_REGS; i++) {
		u64 value = c->regs[i];
		if (value < 4096 || value >> 47)
			continue;
		if (!bpf_probe_read_user(c->near[i], AF_CRASH_NEAR, (void *)value))
			c->near_valid |= 1u << i;
		struct af_slot_key key = {.tgid = tgid, .addr = value};
		u64 *owner = objects.lookup(&key);
		if (owner)
			af_crash_pick(picked, *owner, AF_HELD_OBJECT, i);
		else
			af_crash_pick(picked, value, AF_HELD_REGISTER, i);
	}
}

/* The events of the open batch as they are now, and the free slots among them. */
static inline __attribute__((always_inline)) void af_crash_batch(struct af_crash *c, struct af_scratch *picked, struct af_thread *t,
							      u32 tgid)
{
	c->nevents = 0;
	c->wait_enter = 0;
	c->wait_exit = 0;
	if (!t->batch_open || !t->events_ptr)
		return;
	c->wait_enter = t->wait_enter;
	c->wait_exit = t->wait_exit;
	u32 count = t->returned < AF_CRASH_EVENTS ? t->returned : AF_CRASH_EVENTS;
	if (!count || count > AF_CRASH_EVENTS)
		return;
	if (bpf_probe_read_user(c->events, count * sizeof(struct af_epoll_event), (void *)t->events_ptr)) {
		af_count(AF_C_READ_FAULT);
		return;
	}
	c->nevents = count;
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_EVENTS; i++) {
		if (i >= count)
			break;
		u64 userdata = 0;
		__builtin_memcpy(&userdata, &c->events[i * sizeof(struct af_epoll_event) + 4], sizeof(userdata));
		if (AF_IS_RESERVED(userdata))
			continue;
		struct af_slot *slot = af_slot_find(tgid, userdata & AF_UD_MASK);
		if (slot && (slot->state == AF_SLOT_FREE || count <= AF_CRASH_SLOTS))
			af_crash_pick(picked, slot->addr, AF_HELD_BATCH, i);
	}
}

static inline __attribute__((always_inline)) void af_crash_slots(struct af_crash *c, struct af_thread *t, u32 tgid)
{
	int zero = 0;
	struct af_scratch *picked = scratch.lookup(&zero);
	if (!picked)
		return;
	picked->pending_count = 0;
	af_crash_registers(c, picked, tgid);
	if (t->stale_slot)
		af_crash_pick(picked, t->stale_slot, AF_HELD_REGISTER, 31);
	af_crash_batch(c, picked, t, tgid);
	AF_LOOP
	for (u32 i = 0; i < AF_CHUNK; i++) {
		if (i >= picked->pending_count)
			break;
		struct af_crash_slot *s = af_crash_slot(c, tgid, picked->pending[i].addr);
		if (!s)
			continue;
		u32 what = picked->pending[i].what, index = picked->pending[i].index & 127;
		if (what == AF_HELD_BATCH)
			s->in_batch = s->in_batch ? s->in_batch : index + 1;
		else if (what == AF_HELD_OBJECT)
			s->objects |= 1u << (index & 31);
		else
			s->registers |= 1u << (index & 31);
	}
}

/* Follow the free list from the first free slot: bounded, and a cycle shows as a repeated address. */
static inline __attribute__((always_inline)) void af_crash_links(struct af_crash *c)
{
	c->nlinks = 0;
#if AF_LINK_OFFSET >= 0
	u64 at = 0;
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_SLOTS; i++) {
		if (i >= c->nslots)
			break;
		if (!at && c->slots[i].slot.state == AF_SLOT_FREE)
			at = c->slots[i].slot.addr;
	}
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_LINKS; i++) {
		u64 next = 0;
		if (!at || bpf_probe_read_user(&next, sizeof(next), (void *)(at + AF_LINK_OFFSET)))
			break;
		c->links[i] = next;
		c->nlinks = i + 1;
		at = next;
	}
#endif
}

int af_signaled(struct af_tp_signal *ctx)
{
	s32 sig = ctx->sig;
	/* SIGILL 4, SIGABRT 6, SIGBUS 7, SIGFPE 8, SIGSEGV 11 (signal(7)), sent by the thread to itself */
	if (sig != 4 && sig != 6 && sig != 7 && sig != 8 && sig != 11)
		return 0;
	u64 id = bpf_get_current_pid_tgid();
	if (ctx->pid != (s32)(u32)id && ctx->pid != (s32)(id >> 32))
		return 0;
	if (!af_target_now())
		return 0;
	struct af_thread *t = af_thread_now();
	if (!t)
		return 0;
	/* a program may live on its faults (a null check by SIGSEGV): a few each second are enough */
	u64 now = bpf_ktime_get_ns();
	if (now - t->crashed_at > AF_CRASH_SPAN_NS) {
		t->crashed_at = now;
		t->crashed = 0;
	}
	if (t->crashed >= 4)
		return 0;
	t->crashed += 1;
	struct af_crash *c = urgent.ringbuf_reserve(sizeof(struct af_crash));
	if (!c) {
		af_count(AF_C_URGENT_LOST);
		return 0;
	}
	u32 tgid = id >> 32;
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
	bpf_probe_read_kernel(c->regs, sizeof(c->regs), regs);
	u64 ip = 0, sp = 0;
	bpf_probe_read_kernel(&ip, 8, (void *)((u64)regs + __builtin_offsetof(struct pt_regs, ip)));
	bpf_probe_read_kernel(&sp, 8, (void *)((u64)regs + __builtin_offsetof(struct pt_regs, sp)));
	bool faulted = (sig == 11 || sig == 7) && t->fault_ts && t->fault_ip == ip;
	u64 addr = faulted ? t->fault_addr : 0;
	s32 stack = af_stack_id(ctx);
	c->head.type = AF_URGENT_CRASH;
	c->head.version = AF_ABI_VERSION;
	c->head.size = sizeof(*c);
	c->head.what = AF_SIGNALED;
	c->head.nbytes = 0;
	c->trigger.seq = 0;
	c->trigger.kind = AF_SIGNALED;
	c->trigger.flags = faulted ? 0 : AF_F_UNKNOWN;
	c->trigger.ts = now;
	c->trigger.addr = addr;
	c->trigger.tgid = tgid;
	c->trigger.tid = (u32)id;
	c->trigger.gen = 0;
	c->trigger.fd = -1;
	c->trigger.epfd = t->wait_epfd;
	c->trigger.ret = 0;
	c->trigger.arg = sig;
	c->trigger.stack = stack;
	c->fault_addr = addr;
	/* A probed instruction that faults does so in its out-of-line copy: the probe knows where it is from. */
	if (ip >= AF_XOL_START && ip < AF_XOL_END && t->hit_ip)
		ip = t->hit_ip;
	c->fault_ip = ip;
	c->trigger.enter = ip;
	c->si_code = ctx->code;
	c->batch = t->batch;
	c->nslots = 0;
	bpf_get_current_comm(c->comm, sizeof(c->comm));
	if (!bpf_probe_read_user(c->stack, AF_CRASH_STACK, (void *)sp))
		c->head.nbytes = AF_CRASH_STACK;
	else if (!bpf_probe_read_user(c->stack, 2048, (void *)sp))
		c->head.nbytes = 2048;
	else if (!bpf_probe_read_user(c->stack, 512, (void *)sp))
		c->head.nbytes = 512;
	else
		af_count(AF_C_READ_FAULT);
	af_crash_slots(c, t, tgid);
	af_crash_links(c);
	urgent.ringbuf_submit(c, 0);
	af_record(AF_SIGNALED, 0, now, ip, addr, 0, -1, t->wait_epfd, ctx->code, sig, stack);
	return 0;
}
