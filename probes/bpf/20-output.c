/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The three outputs (recorder, lifetimes, urgent), the counters, and who and where we are.
 */
AF_FN void af_count(u32 which)
{
	int key = which;
	u64 *value = counters.lookup(&key);
	if (value)
		__sync_fetch_and_add(value, 1); /* whoever is preempted in between would put back an old count */
}

/* A place to work on for a uprobe's program, until it gives it back; null, and counted, when as many others were
 * preempted on this CPU within theirs. */
AF_FN struct af_scratch *af_scratch_take(void)
{
	struct af_scratch *found = 0;
	AF_LOOP
	for (u32 i = 1; i < AF_SCRATCHES; i++) {
		int key = i;
		struct af_scratch *s = scratch.lookup(&key);
		if (s && !__sync_lock_test_and_set(&s->taken, 1)) {
			s->place = i;
			found = s;
			break;
		}
	}
	if (!found)
		af_count(AF_C_PREEMPTED);
	return found;
}

AF_FN void af_scratch_give(struct af_scratch *s)
{
	__sync_lock_test_and_set(&s->taken, 0);
}

/* The place that a function behind AF_CALL is given, looked up: to the verifier what it is given is memory of some kind,
 * and before 6.2 that is no key of a map and no value for one. */
AF_FN struct af_scratch *af_own(struct af_scratch *given)
{
	int place = given ? (int)given->place : 0;
	return given ? scratch.lookup(&place) : 0;
}

/* One call instead of hundreds of moves: the verifier looks at each of them on every path. */
#define af_copy(to, from, size) bpf_probe_read_kernel(to, size, from)

/* What suspicions leave to crashes, execs and ends, however many there are: 29 crashes in 4 MiB. */
#define AF_URGENT_KEPT (AF_URGENT_PAGES * 4096ull / 8)

/* A rule that floods the ring has half of it. The rest but for what is kept is for those that have put in little
 * since it was nearly empty: 1/32 each, which is as many messages as reports will ever tell apart. */
AF_FN bool af_has_room(u64 used, u64 size)
{
	const u64 whole = AF_URGENT_PAGES * 4096ull;
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	struct af_share *round = shares.lookup(&zero);
	if (used > whole - AF_URGENT_KEPT || !s || !round)
		return false;
	int what = s->suspect & (AF_SHARES - 1);
	struct af_share *own = shares.lookup(&what);
	if (!own)
		return false;
	if (used < whole / 16)
		round->round += 1;
	if (own->round != round->round) {
		own->round = round->round;
		own->bytes = 0;
	}
	if (used > whole / 2 && own->bytes > whole / 32)
		return false;
	__sync_fetch_and_add(&own->bytes, size);
	return true;
}

AF_FN void *af_reserve(void *ring, u64 size, u64 flags)
{
	if (size == sizeof(struct af_suspicion) &&
	    !af_has_room(bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA), size))
		return 0;
	return bpf_ringbuf_reserve(ring, size, flags);
}

/* bcc 0.26 has no method for the query, and no other way to name a map: `urgent.ringbuf_reserve()` becomes this
 * call, with the map as its first argument. */
#define bpf_ringbuf_reserve(ring, size, flags) af_reserve(ring, size, flags)

AF_FN u32 af_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

AF_FN struct af_target *af_target_now(void)
{
	u32 tgid = af_tgid();
	return targets.lookup(&tgid);
}

AF_FN struct af_thread *af_thread_now(void)
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

/* Registers and stack bytes of the first hit with this stack id. Two threads at once: the first one wins. */
AF_FN void af_keep_stack(s32 id, u64 place)
{
	if (stack_bytes.lookup(&id))
		return;
	int key = (int)place;
	struct af_stack_bytes *s = stack_scratch.lookup(&key);
	if (!s)
		return;
	u64 r = (u64)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
#define AF_KEEP(at, field) \
	bpf_probe_read_kernel(&s->regs[at], 8, (void *)(r + __builtin_offsetof(struct pt_regs, field)))
	AF_KEEP(0, ip);
	AF_KEEP(1, sp);
	AF_KEEP(2, bp);
	AF_KEEP(3, bx);
	AF_KEEP(4, r12);
	AF_KEEP(5, r13);
	AF_KEEP(6, r14);
	AF_KEEP(7, r15);
	u64 sp = AF_KEPT(s->regs[1]);
	s->tgid = af_tgid();
	s->nbytes = AF_STACK_BYTES;
	if (bpf_probe_read_user(s->bytes, AF_STACK_BYTES, (void *)sp)) {
		s->nbytes = AF_STACK_SHORT;
		if (bpf_probe_read_user(s->bytes, AF_STACK_SHORT, (void *)sp))
			s->nbytes = 0;
	}
	stack_bytes.insert(&id, s);
}

#if AF_ASK
AF_FN u64 af_as_code(u64 word, struct af_span *own, struct af_span *libraries)
{
	bool code = word - own->from < own->to - own->from;
	if (libraries)
		code |= word - libraries->from < libraries->to - libraries->from;
	return code ? word : 0;
}
#endif

#define AF_MIX(hash, word) (((hash) ^ (word)) * 1099511628211ull) /* FNV-1a, by words */

/* What tells the user stack from others: the instruction, the first callers by frame pointers, and what at its end may
 * be a return address: frame pointers miss the caller of a function that has set up none. 0: it must be walked. */
AF_FN u64 af_fingerprint(u64 caller, struct af_scratch *s)
{
#if AF_ASK
	u32 tgid = af_tgid();
	u64 mm = af_word((u64)bpf_get_current_task() + AF_TASK_MM);
	struct af_span own = {.from = af_word(mm + AF_MM_START_CODE), .to = af_word(mm + AF_MM_END_CODE)};
	struct af_span *libraries = spans.lookup(&tgid);
	u64 sp = AF_USER(sp), frame[2] = {AF_USER(bp), 0};
	u64 hash = AF_MIX(AF_MIX(14695981039346656037ull, AF_USER(ip)), caller);
	if (bpf_probe_read_user(s->words, sizeof(s->words), (void *)sp))
		return 0; /* the very end of the stack */
	for (u32 i = 0; i < 2; i++)
		if (!bpf_probe_read_user(frame, sizeof(frame), (void *)frame[0]))
			hash = AF_MIX(hash, af_as_code(frame[1], &own, libraries));
	AF_LOOP
	for (u32 i = 0; i < AF_STACK_WORDS; i++) {
		u64 code = af_as_code(s->words[i], &own, libraries);
		if (code)
			hash = AF_MIX(hash, code);
	}
	return hash;
#else
	return 0;
#endif
}

/* Whether the stack is known; then by s->stack_id. */
int af_find_stack(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	if (!s)
		return 0;
	u64 hash = af_fingerprint(s->caller, s);
	s32 id = (s32)((hash ^ hash >> 32) & 0x7fffffff);
	s->hash = hash;
	s->stack_id = id;
	return hash && stacks.lookup(&id);
}

/* The stack that was walked, s->stack, gets s->stack_id. */
int af_add_stack(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	if (!s)
		return 0;
	u64 hash = s->hash;
	if (!hash) {
		hash = AF_MIX(14695981039346656037ull, s->caller);
		AF_LOOP
		for (u32 i = 0; i < AF_STACK_DEPTH; i++)
			hash = AF_MIX(hash, s->stack.ip[i]);
	}
	s32 id = (s32)((hash ^ hash >> 32) & 0x7fffffff);
	s->stack_id = id;
	if (stacks.lookup(&id))
		return 0;
	stacks.insert(&id, &s->stack);
	if (stacks.lookup(&id)) {
		af_keep_stack(id, s->place);
	} else {
		af_count(AF_C_STACK_FAILED);
		s->stack_id = -1;
	}
	return 0;
}

/* An id of the user stack: walked for the first one of its fingerprint only. The kernel's own stack map has one place
 * for many stacks, so that the second of two would be refused, or change what the first one's id says. caller: the
 * return address at a function's entry, which the walk by frame pointers passes over; 0 elsewhere. */
AF_FN s32 af_stack_id_in(void *ctx, u64 caller, struct af_scratch *s)
{
	s->caller = caller;
	if (AF_CALL(4, af_find_stack, s))
		return s->stack_id;
	__builtin_memset(&s->stack, 0, sizeof(s->stack));
	if (bpf_get_stack(ctx, &s->stack, sizeof(s->stack), BPF_F_USER_STACK) < 0) {
		af_count(AF_C_STACK_FAILED);
		return -1;
	}
	AF_CALL(5, af_add_stack, s);
	return s->stack_id;
}

/* The same for a tracepoint's program. */
AF_FN s32 af_stack_id(void *ctx)
{
	int zero = 0;
	struct af_scratch *s = scratch.lookup(&zero);
	return s ? af_stack_id_in(ctx, 0, s) : -1;
}

/* One 64-byte store. The place is taken at once, since another program may interrupt this one on its CPU; `seq` is
 * written last: a reader takes a record when its `seq` is that of the place. */
AF_FN void af_record(u16 kind, u16 flags, u64 ts, u64 enter, u64 addr, u32 gen,
					s32 fd, s32 epfd, s32 ret, u32 arg, s32 stack)
{
	int base = bpf_get_smp_processor_id() * (AF_RING_RECORDS + 1);
	struct af_ring_head *head = (struct af_ring_head *)recorder.lookup(&base);
	if (!head)
		return;
	u64 written = __sync_fetch_and_add(&head->written, 1);
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
}

AF_FN void af_lifetime_out(struct af_slot *slot, u64 signature)
{
	int cpu = bpf_get_smp_processor_id();
	struct af_ring_head *head = lifetime_heads.lookup(&cpu);
	if (!head)
		return;
	u64 written = __sync_fetch_and_add(&head->written, 1);
	int index = cpu * AF_LIFE_RECORDS + (int)(written & (AF_LIFE_RECORDS - 1));
	struct af_lifetime *l = lifetimes.lookup(&index);
	if (!l)
		return;
	l->cpu = cpu;
	l->signature = signature;
	af_copy(&l->slot, slot, sizeof(*slot));
	*(volatile u32 *)&l->seq = (u32)written;
	af_count(AF_C_LIFETIMES);
}

/* How often this rule was broken at this site by now; 0: that is not counted, each is sent. */
AF_FN u64 af_site_total(struct af_target *target, u32 what, s32 stack)
{
	struct af_site_key key = {.tgid = af_tgid(), .epoch = target->epoch, .what = what, .stack = stack};
	if (stack < 0)
		return 0;
	u64 *count = sites.lookup(&key);
	if (!count) {
		u64 none = 0;
		sites.insert(&key, &none);
		count = sites.lookup(&key);
	}
	if (!count)
		return 0;
	__sync_fetch_and_add(count, 1);
	return *count;
}

/* Whether an occurrence is told by itself; all are in the total of the next one that is, or in the map. */
AF_FN bool af_site_told(u64 total)
{
	return total <= AF_EACH_OF_SITE || !(total & (total - 1));
}

/* Send the evidence. t, slot, reg and other may be null, the latter in state AF_REG_NONE as well; tgid is the target's, whoever runs this. */
AF_FN void af_suspect(u32 what, struct af_trigger_args *a, u32 tgid, struct af_target *target, struct af_thread *t,
		      struct af_slot *slot, struct af_reg *reg, struct af_reg *other)
{
	int zero = 0;
	struct af_scratch *room = scratch.lookup(&zero);
	if (room)
		room->suspect = what;
	struct af_suspicion *s = urgent.ringbuf_reserve(sizeof(struct af_suspicion));
	if (!s) {
		af_count(AF_C_URGENT_LOST);
		return;
	}
	af_count(AF_C_SUSPICIONS);
	u32 tid = (u32)bpf_get_current_pid_tgid();
	s->head.type = AF_URGENT_SUSPICION;
	s->head.version = AF_ABI_VERSION;
	s->head.size = sizeof(*s);
	s->head.what = what;
	s->head.nbytes = 0;
	s->trigger.seq = 0;
	s->trigger.kind = a->kind;
	s->trigger.flags = a->flags;
	s->trigger.ts = a->ts;
	s->trigger.enter = a->enter;
	s->trigger.addr = a->addr;
	s->trigger.tgid = tgid;
	s->trigger.tid = a->tid ? a->tid : tid;
	s->trigger.gen = a->gen;
	s->trigger.fd = a->fd;
	s->trigger.epfd = a->epfd;
	s->trigger.ret = a->ret;
	s->trigger.arg = a->arg;
	s->trigger.stack = a->stack;
	s->wait_enter = t ? t->wait.enter : 0;
	s->wait_exit = t ? t->wait.exit : 0;
	s->batch = t ? t->batch : 0;
	s->batch_open = t ? t->depth : 0;
	s->forks = target ? target->forks : 0;
	s->last_child = target ? target->last_child : 0;
	s->forked_at = target ? target->forked_at : 0;
	/* what is not there is marked: addr 0, state NONE, nbytes 0 */
	s->slot.addr = 0;
	s->reg.state = AF_REG_NONE;
	s->other.state = AF_REG_NONE;
	if (slot)
		af_copy(&s->slot, slot, sizeof(*slot));
	if (reg && AF_KEPT(reg->state) != AF_REG_NONE)
		af_copy(&s->reg, reg, sizeof(*reg));
	if (other && AF_KEPT(other->state) != AF_REG_NONE)
		af_copy(&s->other, other, sizeof(*other));
	__builtin_memset(s->comm, 0, sizeof(s->comm));
	if (!a->tid || a->tid == tid)
		bpf_get_current_comm(s->comm, sizeof(s->comm));
	if (slot && tgid == af_tgid()) {
		if (!bpf_probe_read_user(s->bytes, AF_SLOT_SIZE, (void *)slot->addr))
			s->head.nbytes = AF_SLOT_SIZE;
		else
			af_count(AF_C_READ_FAULT);
	}
	urgent.ringbuf_submit(s, 0);
}
