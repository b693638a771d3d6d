/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Slots, registrations and descriptions: the state machine.
 */
static inline __attribute__((always_inline)) struct af_slot *af_slot_find(u32 tgid, u64 addr)
{
	struct af_slot_key key = {.tgid = tgid, .addr = addr};
	return slots.lookup(&key);
}

static inline __attribute__((always_inline)) struct af_slot *af_slot_new(u32 tgid, u64 addr)
{
	struct af_slot_key key = {.tgid = tgid, .addr = addr};
	int zero = 0;
	struct af_slot *empty = empty_slot.lookup(&zero);
	if (!empty)
		return 0;
	slots.insert(&key, empty);
	struct af_slot *slot = slots.lookup(&key);
	if (!slot) {
		af_count(AF_C_SLOTS_FULL);
		return 0;
	}
	slot->addr = addr;
	slot->tgid = tgid;
	slot->fd = -1;
	slot->epfd = -1;
	slot->old_fd = -1;
	slot->old_epfd = -1;
	return slot;
}

static inline __attribute__((always_inline)) struct af_reg *af_reg_find(u32 tgid, s32 epfd, s32 fd)
{
	struct af_reg_key key = {.tgid = tgid, .epfd = epfd, .fd = fd};
	return regs.lookup(&key);
}

static inline __attribute__((always_inline)) bool af_reg_alive(struct af_reg *reg)
{
	return reg && (reg->state == AF_REG_LIVE || reg->state == AF_REG_ADDING) && !(reg->flags & AF_R_ENDING);
}

static inline __attribute__((always_inline)) struct af_reg *af_orphan_find(u32 tgid, u64 desc)
{
	struct af_desc_key key = {.tgid = tgid, .desc = desc};
	return orphans.lookup(&key);
}

/* The registration of the slot's current generation, alive, or null. */
static inline __attribute__((always_inline)) struct af_reg *af_reg_current(struct af_slot *slot)
{
	if (slot->fd < 0)
		return 0;
	struct af_reg *reg = af_reg_find(slot->tgid, slot->epfd, slot->fd);
	if (!af_reg_alive(reg) || reg->slot != slot->addr || reg->gen != slot->gen)
		return 0;
	return reg;
}

/* The surviving registration the slot remembers (any generation), alive, or null. */
static inline __attribute__((always_inline)) struct af_reg *af_reg_old(struct af_slot *slot, struct af_target *target)
{
	struct af_reg *reg;
	if (slot->old_desc) {
		reg = af_orphan_find(slot->tgid, slot->old_desc);
		if (!reg || reg->state != AF_REG_ORPHAN || reg->slot != slot->addr)
			return 0;
		if ((reg->flags & AF_R_FORK_SHARED) && !(target && target->forks))
			return 0;
		return reg;
	}
	if (slot->old_fd < 0)
		return 0;
	reg = af_reg_find(slot->tgid, slot->old_epfd, slot->old_fd);
	if (!af_reg_alive(reg) || reg->slot != slot->addr || reg->gen != slot->old_gen)
		return 0;
	return reg;
}

static inline __attribute__((always_inline)) u32 af_waiter(u32 tgid, s32 epfd)
{
	struct af_fd_key key = {.tgid = tgid, .fd = epfd};
	u32 *tid = waiters.lookup(&key);
	return tid && *tid != AF_MANY_WAITERS ? *tid : 0;
}

static inline __attribute__((always_inline)) void af_at_set(struct af_at *at, u64 enter, u64 ts, u64 ip, u32 tid, s32 stack)
{
	at->enter = enter;
	at->ts = ts;
	at->ip = ip;
	at->tid = tid;
	at->stack = stack;
}

static inline __attribute__((always_inline)) void af_at_clear(struct af_at *at)
{
	af_at_set(at, 0, 0, 0, 0, -1);
}

/* A new generation begins at this address. What the old one still owes a report is sent first. */
static inline __attribute__((always_inline)) void af_slot_reborn(struct af_target *target, struct af_slot *slot, u32 flags)
{
	bool was_live = slot->state == AF_SLOT_LIVE;
	if (slot->stale != slot->stale_reported) {
		struct af_trigger_args a = {.ts = slot->last_delivery, .enter = slot->last_delivery_enter,
					    .addr = slot->addr, .gen = slot->gen, .fd = slot->consecutive,
					    .epfd = slot->epfd, .ret = 0, .arg = 0, .stack = -1, .kind = AF_DELIVERED};
		slot->stale_reported = slot->stale;
		af_suspect(AF_SUSPECT_STALE_DELIVERY, &a, 0, slot, af_reg_old(slot, target), 0);
	}
	struct af_reg *reg = af_reg_current(slot);
	if (reg) {
		slot->old_fd = slot->fd;
		slot->old_epfd = slot->epfd;
		slot->old_gen = slot->gen;
		slot->old_desc = 0;
	}
	if (slot->old_desc && !af_reg_old(slot, target)) {
		/* shared with a forked child that is gone by now: nobody else would take it out of the map */
		struct af_desc_key key = {.tgid = slot->tgid, .desc = slot->old_desc};
		orphans.delete(&key);
		slot->old_desc = 0;
		slot->old_fd = -1;
	}
	slot->prev_destroy = slot->destroy;
	slot->gen += 1;
	if (!was_live)
		slot->live_from = slot->gen;
	slot->state = AF_SLOT_LIVE;
	slot->flags = flags | (was_live ? AF_S_REBORN_LIVE : 0);
	af_at_clear(&slot->create);
	af_at_clear(&slot->add);
	af_at_clear(&slot->del);
	af_at_clear(&slot->close);
	af_at_clear(&slot->destroy);
	slot->first_delivery = 0;
	slot->last_delivery = 0;
	slot->last_delivery_enter = 0;
	slot->last_dispatch = 0;
	slot->first_after_close = 0;
	slot->last_after_close = 0;
	slot->object = 0;
	slot->deliveries = 0;
	slot->dispatches = 0;
	slot->after_close = 0;
	slot->stale = 0;
	slot->stale_reported = 0;
	slot->double_destroys = 0;
	slot->last_batch = 0;
	slot->last_tid = 0;
	slot->consecutive = 0;
	slot->waiter = 0;
	slot->fd = -1;
	slot->epfd = -1;
	slot->recycled = 0;
	slot->recycled_reported = 0;
	slot->batch_count = 0;
	slot->undispatched = 0;
	slot->stale_dispatches = 0;
}

/* Is the batch that holds the slot's last delivery still open on the thread that got it? */
static inline __attribute__((always_inline)) bool af_in_open_batch(struct af_slot *slot)
{
	if (!slot->last_tid)
		return false;
	u64 id = ((u64)slot->tgid << 32) | slot->last_tid;
	struct af_thread *t = threads.lookup(&id);
	return t && t->batch_open && t->batch == slot->last_batch;
}

static inline __attribute__((always_inline)) void af_slot_closed(struct af_slot *slot, struct af_reg *reg, struct af_at *at)
{
	slot->close = *at;
	slot->flags |= AF_S_CLOSED;
	u32 waiter = af_waiter(slot->tgid, reg->epfd);
	if (waiter) {
		slot->waiter = waiter;
		slot->flags |= AF_S_WAITER_KNOWN;
		if (waiter != at->tid)
			slot->flags |= AF_S_CLOSE_BY_OTHER;
	}
	if (slot->state == AF_SLOT_LIVE && !(slot->flags & AF_S_DELETED) && slot->last_tid != at->tid &&
	    af_in_open_batch(slot))
		slot->flags |= AF_S_CLOSE_IN_BATCH;
}

/* Take what is known of a number out of `fds`, once: `*was` is a copy, and so is t->reg of the registration under
 * it. The entry is not deleted but marked: it may be replaced at any moment. Marked ones are as many as there are
 * numbers. */
static inline __attribute__((always_inline)) bool af_fd_take(struct af_thread *t, u32 tgid, s32 fd, struct af_fd *was)
{
	struct af_fd_key key = {.tgid = tgid, .fd = fd};
	struct af_fd *f = fds.lookup(&key);
	if (!f)
		return false;
	__builtin_memcpy(was, f, sizeof(*was));
	/* `epfd` and `closed` are one aligned word: clang 14 without ALU32 has no 32-bit compare-and-swap */
	u64 open = (u32)was->epfd, closed = open | 1ull << 32;
	if (was->closed || __sync_val_compare_and_swap((u64 *)&f->epfd, open, closed) != open)
		return false;
	struct af_reg *reg = was->epfd >= 0 ? af_reg_find(tgid, was->epfd, fd) : 0;
	if (reg)
		__builtin_memcpy(&t->reg, reg, sizeof(*reg));
	else
		t->reg.state = AF_REG_NONE;
	return true;
}

/* One reference to the description is gone. Others are left: true. Two threads may end two of them at once. */
static inline __attribute__((always_inline)) bool af_desc_left(struct af_desc_key *key)
{
	struct af_desc *d = descs.lookup(key);
	if (d && __sync_fetch_and_add(&d->refs, -1) > 1)
		return true;
	descs.delete(key);
	return false;
}

/* The description is gone, and with it the registration that outlived its number. */
static inline __attribute__((always_inline)) void af_orphan_ended(struct af_desc_key *key)
{
	struct af_reg *orphan = orphans.lookup(key);
	if (!orphan)
		return;
	struct af_slot *slot = af_slot_find(key->tgid, orphan->slot);
	if (slot && slot->old_desc == key->desc) {
		slot->old_desc = 0;
		slot->old_fd = -1;
	}
	orphans.delete(key);
}

/* The effect of a close: the fd is gone; the registration (t->reg) goes with the description, or survives it.
 * It is accounted for by the thread that closed, before that thread goes on: what it does next to the slot finds
 * it done. By then the number may have its next life, and its entry in `regs` with it: that is left alone. */
static inline __attribute__((always_inline)) void af_close_effect(void *ctx, struct af_target *target, struct af_thread *t, u32 tgid,
					      s32 fd, struct af_fd *was, struct af_at *at)
{
	struct af_reg *reg = &t->reg;
	struct af_reg *live = reg->state != AF_REG_NONE ? af_reg_find(tgid, was->epfd, fd) : 0;
	if (live && live->add.enter == reg->add.enter && live->fd == fd) {
		/* a DEL that was under way at the same time may have ended it first */
		reg->state = live->state;
		reg->flags = live->flags;
		live->state = AF_REG_ENDED;
	} else {
		live = 0;
	}
	u64 desc = was->desc;
	s32 epfd = was->epfd;
	bool survives = false, by_fork = false;
	struct af_desc_key dkey = {.tgid = tgid, .desc = desc};
	if (desc) {
		survives = af_desc_left(&dkey);
		if (!survives)
			af_orphan_ended(&dkey);
	}
	if (!survives && target->forks) {
		survives = true;
		by_fork = true;
		dkey.desc = desc = at->ts | 1;
	}
	if (reg->state == AF_REG_NONE)
		return;
	struct af_slot *slot = af_slot_find(tgid, reg->slot);
	bool current = slot && slot->gen == reg->gen;
	if (reg->state == AF_REG_ENDED) {
		if (current && (reg->flags & AF_R_BY_DEL) && !slot->close.ts)
			af_slot_closed(slot, reg, at);
		return;
	}
	reg->end = *at;
	reg->flags &= ~AF_R_ENDING;
	if (survives) {
		reg->desc = desc;
		reg->flags |= by_fork ? AF_R_FORK_SHARED : AF_R_SHARED;
	}
	if (live) {
		live->end = *at;
		live->desc = reg->desc;
		live->flags = reg->flags | AF_R_BY_CLOSE;
	}
	if (current)
		af_slot_closed(slot, reg, at);
	if (!survives)
		return;
	reg->state = AF_REG_ORPHAN;
	if (orphans.insert(&dkey, reg))
		af_count(AF_C_ORPHANS_FULL);
	if (slot) {
		if (current)
			slot->flags |= by_fork ? AF_S_FORK_SHARED : AF_S_ORPHANED;
		slot->old_fd = fd;
		slot->old_epfd = epfd;
		slot->old_gen = reg->gen;
		slot->old_desc = desc;
	}
	if (by_fork)
		return;
	if (!descs.lookup(&dkey)) {
		/* the last other reference went at the same moment, and its thread may have come too early */
		af_orphan_ended(&dkey);
		return;
	}
	struct af_trigger_args a = {.ts = at->ts, .enter = at->enter, .addr = reg->slot, .gen = reg->gen,
				    .fd = fd, .epfd = epfd, .ret = 0, .arg = 0, .stack = at->stack, .kind = AF_CLOSED};
	af_suspect(AF_SUSPECT_OUTLIVES_CLOSE, &a, t, slot, af_orphan_find(tgid, desc), 0);
}

/* fd was handed out anew while we still hold an older life of it: its close was not seen, and is over. */
static inline __attribute__((always_inline)) void af_fd_reused(void *ctx, struct af_target *target, struct af_thread *t, u32 tgid, s32 fd,
					   u64 now)
{
	struct af_fd was;
	if (!af_fd_take(t, tgid, fd, &was))
		return;
	struct af_at at = {.enter = 0, .ts = now, .ip = 0, .tid = 0, .stack = -1};
	af_close_effect(ctx, target, t, tgid, fd, &was, &at);
}
