/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * A fatal signal: everything that explains it and will be gone with the process, in one message.
 */

#define AF_CRASH_SPAN_NS 1000000000ull

/* Events of the batch whose slots are looked up. Before 6.2 the verifier keeps too much of each turn apart (precision
 * of scalars), and refuses them: the events themselves are in the message all the same. */
#if AF_LINUX_VERSION_CODE < 0x60200
#define AF_CRASH_LOOKED 0
#else
#define AF_CRASH_LOOKED AF_CRASH_EVENTS
#endif

/* The entry of `addr` among the slots of this message; a new one when it is known and there is room. */
AF_FN struct af_crash_slot *af_crash_slot(struct af_crash *c, struct af_target *target, struct af_scratch *picked,
					  u64 addr)
{
	struct af_slot *slot = addr >= 4096 ? af_slot_find(target, addr) : 0;
	if (!slot)
		return 0;
	AF_KEPT(picked->picked_place) = c->nslots;
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_SLOTS; i++) {
		if (i >= AF_KEPT(c->nslots))
			break;
		if (c->slots[i].slot.addr == addr)
			AF_KEPT(picked->picked_place) = i;
	}
	u32 n = AF_KEPT(picked->picked_place);
	if (n >= AF_CRASH_SLOTS)
		return 0;
	struct af_crash_slot *s = &c->slots[n];
	if (n < AF_KEPT(c->nslots))
		return s;
	AF_KEPT(c->nslots) = n + 1;
	s->registers = 0;
	s->objects = 0;
	s->in_batch = 0;
	s->nbytes = 0;
	af_copy(&s->slot, slot, sizeof(*slot));
	__builtin_memset(&s->reg, 0, sizeof(s->reg));
	if (af_remembered(slot, picked))
		af_copy(&s->reg, &picked->reg, sizeof(s->reg));
	if (!bpf_probe_read_user(s->bytes, AF_CRASH_SLOT_SIZE, (void *)addr))
		s->nbytes = AF_CRASH_SLOT_SIZE;
	else
		af_count(AF_C_READ_FAULT);
	return s;
}

/* Candidates are collected first and copied by one loop: a copy at each place would be too much for the verifier. */
AF_FN void af_crash_pick(struct af_scratch *picked, u64 addr, u32 what, u32 index)
{
	u32 n = picked->noticed_count;
	if (n >= AF_CHUNK)
		return;
	picked->noticed[n].addr = addr;
	picked->noticed[n].what = what;
	picked->noticed[n].index = index;
	picked->noticed_count = n + 1;
}

#define AF_HELD_REGISTER 0
#define AF_HELD_OBJECT 1
#define AF_HELD_BATCH 2

AF_FN void af_crash_registers(struct af_crash *c, struct af_scratch *picked, struct af_target *target)
{
	c->near_valid = 0;
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_REGS; i++) {
		u64 value = c->regs[i];
		if (value < 4096 || value >> 47)
			continue;
		if (!bpf_probe_read_user(c->near[i], AF_CRASH_NEAR, (void *)value))
			c->near_valid |= 1u << i;
		struct af_slot_key key = {.tgid = af_tgid(), .epoch = target->epoch, .addr = value};
		u64 *owner = objects.lookup(&key);
		if (owner)
			af_crash_pick(picked, *owner, AF_HELD_OBJECT, i);
		else
			af_crash_pick(picked, value, AF_HELD_REGISTER, i);
	}
}

int af_known_slot(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	return s && slots.lookup(&s->key);
}

/* Slots whose address lies on the stack, innermost first. A program that ends itself (a panic, an assertion) has
 * other things in its registers by then; variables of the frames that called for it still hold the slot. */
AF_FN void af_crash_on_stack(struct af_crash *c, struct af_scratch *picked, struct af_target *target)
{
	/* Hits are kept and counted in `links`, which is filled later: what the verifier follows is one look-up for each
	 * word, and no number of hits. Those of one slot are put together where slots are copied. */
	struct af_slot_key key = {.tgid = af_tgid(), .epoch = target->epoch, .addr = 0};
	c->nlinks = 0;
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_STACK / 8; i++) {
		if (i * 8 >= c->head.nbytes)
			break;
		__builtin_memcpy(&key.addr, &c->stack[i * 8], sizeof(key.addr));
		picked->key = key;
		if (!AF_CALL(10, af_known_slot, picked))
			continue;
		u32 n = c->nlinks;
		if (n >= AF_CRASH_ON_STACK)
			break;
		c->links[n] = key.addr;
		c->nlinks = n + 1;
	}
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_ON_STACK; i++) {
		if (i >= c->nlinks)
			break;
		af_crash_pick(picked, c->links[i], AF_HELD_REGISTER, 30);
	}
}

/* s->userdata: of event s->at of a batch of s->count. */
int af_crash_delivered(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	struct af_target *target = s ? af_target_now() : 0;
	u64 userdata = s ? s->userdata : 0;
	if (!target || AF_IS_RESERVED(userdata))
		return 0;
	struct af_slot *slot = af_slot_find(target, af_slot_behind(target, userdata, false));
	if (slot && (slot->state == AF_SLOT_FREE || s->count <= AF_CRASH_SLOTS))
		af_crash_pick(s, slot->addr, AF_HELD_BATCH, s->at);
	return 0;
}

/* The events of the open batch as they are now, and the free slots among them. */
AF_FN void af_crash_batch(struct af_crash *c, struct af_scratch *picked, struct af_thread *t, struct af_target *target)
{
	c->nevents = 0;
	c->wait_enter = 0;
	c->wait_exit = 0;
	if (!t->depth)
		return;
	struct af_batch *b = &t->open[(t->depth - 1) & (AF_BATCHES - 1)]; /* the innermost */
	if (!b->events)
		return;
	c->wait_enter = b->enter;
	c->wait_exit = b->exit;
	c->batch = b->number;
	u32 count = b->count < AF_CRASH_EVENTS ? b->count : AF_CRASH_EVENTS;
	if (!count || count > AF_CRASH_EVENTS)
		return;
	if (bpf_probe_read_user(c->events, count * sizeof(struct af_epoll_event), (void *)b->events)) {
		af_count(AF_C_READ_FAULT);
		return;
	}
	c->nevents = count;
	picked->count = count;
	AF_LOOP
	for (u32 i = 0; i < AF_CRASH_LOOKED; i++) {
		if (i >= count)
			break;
		u64 userdata = 0;
		af_copy(&userdata, &c->events[i * sizeof(struct af_epoll_event) + 4], sizeof(userdata));
		picked->userdata = userdata;
		picked->at = i;
		AF_CALL(11, af_crash_delivered, picked);
	}
}

AF_FN void af_crash_slots(struct af_crash *c, struct af_thread *t, struct af_target *target)
{
	int zero = 0;
	struct af_scratch *picked = scratch.lookup(&zero);
	if (!picked)
		return;
	picked->noticed_count = 0;
	af_crash_registers(c, picked, target);
	if (t->stale_slot)
		af_crash_pick(picked, t->stale_slot, AF_HELD_REGISTER, 31);
	af_crash_on_stack(c, picked, target);
	af_crash_batch(c, picked, t, target);
	AF_LOOP
	for (u32 i = 0; i < AF_CHUNK; i++) {
		if (i >= picked->noticed_count)
			break;
		struct af_crash_slot *s = af_crash_slot(c, target, picked, picked->noticed[i].addr);
		if (!s)
			continue;
		u32 what = picked->noticed[i].what, index = picked->noticed[i].index & 127;
		if (what == AF_HELD_BATCH)
			s->in_batch = s->in_batch ? s->in_batch : index + 1;
		else if (what == AF_HELD_OBJECT)
			s->objects |= 1u << (index & 31);
		else
			s->registers |= 1u << (index & 31);
	}
}

/* Follow the free list from the first free slot: bounded, and a cycle shows as a repeated address. */
AF_FN void af_crash_links(struct af_crash *c)
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

/* The address whose access the kernel answers with this signal (force_sig_fault, set_signal_archinfo of
 * arch/x86/mm/fault.c); none where the signal was sent, or the address was not canonical. */
AF_FN bool af_faulted(struct af_thread *t, u64 ip, s32 code, u64 *addr)
{
#if AF_ASK
	u64 thread = (u64)bpf_get_current_task() + AF_TASK_THREAD;
	if (code <= 0 || code == 0x80 || af_word(thread + AF_THREAD_TRAP) != 14) /* SI_KERNEL, X86_TRAP_PF */
		return false;
	*addr = af_word(thread + AF_THREAD_CR2);
	return true;
#else
	if (!t->fault_ts || t->fault_ip != ip)
		return false;
	*addr = t->fault_addr;
	return true;
#endif
}

int af_signaled(void *ctx)
{
	s32 sig = *(s32 *)(ctx + AF_TP_SIGNAL_SIG), code = *(s32 *)(ctx + AF_TP_SIGNAL_CODE);
	/* SIGILL 4, SIGABRT 6, SIGBUS 7, SIGFPE 8, SIGSEGV 11 (signal(7)), sent by the thread to itself */
	if (sig != 4 && sig != 6 && sig != 7 && sig != 8 && sig != 11)
		return 0;
	u64 id = bpf_get_current_pid_tgid();
	s32 to = *(s32 *)(ctx + AF_TP_SIGNAL_PID);
	if (to != (s32)(u32)id && to != (s32)(id >> 32))
		return 0;
	struct af_target *target = af_target_now();
	if (!target)
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
	u64 addr = 0;
	bool faulted = (sig == 11 || sig == 7) && af_faulted(t, ip, code, &addr);
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
	c->trigger.epfd = t->wait.epfd;
	c->trigger.ret = 0;
	c->trigger.arg = sig;
	c->trigger.stack = stack;
	c->fault_addr = addr;
	/* A probed instruction that faults does so in its out-of-line copy: the probe knows where it is from. */
	if (ip >= AF_XOL_START && ip < AF_XOL_END && t->hit_ip)
		ip = t->hit_ip;
	c->fault_ip = ip;
	c->trigger.enter = ip;
	c->si_code = code;
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
	af_crash_slots(c, t, target);
	af_crash_links(c);
	urgent.ringbuf_submit(c, 0);
	af_record(AF_SIGNALED, 0, now, ip, addr, 0, -1, t->wait.epfd, code, sig, stack);
	return 0;
}
