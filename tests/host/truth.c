/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The oracle. It knows every registration from the simulated kernel, and the lives of slots from the program that is
 * played; at each step of a probe program it says what must be reported and what may be.
 */
#define TRUTH_BITS(what) (1u << (what))

struct truth_reg {
	struct sim_eventpoll *ep;
	struct sim_file *file;
	s32 fd, slot;
	u32 life;
	u8 live, noted, loose;  /* noted: the ADD was seen to begin; loose: it began while its slot was free */
	u8 moving;              /* a MOD that changed its userdata has not returned */
	u8 closed, due, told;   /* its number was closed while it lived; to be told; told */
	u8 at_birth;            /* it existed when its slot was born again */
	u8 ended;               /* by a call that began after it, and has returned */
	u8 returned;            /* its ADD has */
	u8 removed;             /* ended by a DEL */
	u32 begun;              /* step */
	u32 closer, due_life;
};

/* UNSEEN, OTHER: known by registrations only, before any life, or after one: another object's memory */
enum truth_state { TRUTH_UNSEEN, TRUTH_LIVE, TRUTH_FREE, TRUTH_OTHER };

struct truth_slot {
	u32 state, life, from;  /* from: first life since the last destroy */
	u32 touched;            /* registered in this life */
	u32 pending, destroyer; /* destroyed while registered, and not judged */
	u32 adders;             /* several threads at once have: only the last one is remembered */
	u32 adder;              /* 1 + thread that began to register it while it was free */
	u32 judged_from, judged_to;
	u32 inferred;           /* born unseen, known by a registration */
	u32 stale, recycled;
	u32 twice;              /* bits of threads that destroyed it while it was free, and have not waited since */
	u32 stray;              /* no create gave it out */
	u32 rearmed;            /* bits of threads that have modified its registration since it was freed */
};

struct truth {
	struct truth_reg regs[SIM_REGS];
	struct truth_slot slots[SIM_SLOTS];
	s32 last[SIM_FDS]; /* 1 + the last registration under a number */
	u32 named[SIM_FDS]; /* slots ever registered under it */
	u32 count, destroys;
	u32 confused; /* two MODs of one registration at once: what is known of the slots depends on who is believed */
	/* of the step: what must be told of each slot, and what may be */
	u32 must[SIM_SLOTS], may[SIM_SLOTS], told[SIM_SLOTS];
	u32 must_any, may_any, told_any; /* of no slot in particular */
};

static struct truth truth;

struct violation { u32 kind, what, slot, step; };
enum violation_kind { RIGHT, FALSE_ALARM, MISSED, LIFETIMES, AUDIT, LOST };
static struct violation wrong;
static u32 truth_step, truth_prepared; /* steps so far; of these, before the threads began */
static u64 not_looked_for[LOST + 1]; /* bits of `what`, by kind */

static void truth_wrong(u32 kind, u32 what, u32 slot)
{
	if (!wrong.kind && !(not_looked_for[kind] & 1ull << (what & 63)))
		wrong = (struct violation){kind, what, slot, truth_step - truth_prepared};
}

static s32 truth_slot_of(u64 userdata)
{
	u64 at = (userdata - SIM_USER) / 0x100;
	return userdata >= SIM_USER && at < SIM_SLOTS ? (s32)at : -1;
}

/* -- told by the kernel */

struct player;
static void player_adds(struct truth_reg *reg);
static void player_adopted(s32 slot, u32 life);

static u32 truth_born(struct sim_epitem *item)
{
	if (truth.count >= SIM_REGS)
		__builtin_trap();
	u32 index = truth.count++;
	struct truth_reg *reg = &truth.regs[index];
	*reg = (struct truth_reg){.ep = item->ep, .file = item->ffd.file, .fd = item->ffd.fd, .live = 1,
				  .slot = truth_slot_of(item->event.data)};
	player_adds(reg);
	truth.last[reg->fd] = 1 + index;
	if (reg->slot >= 0) {
		truth.named[reg->fd] |= 1u << reg->slot;
		truth.slots[reg->slot].touched = 1;
	}
	return index;
}

static void truth_changed(struct sim_epitem *item)
{
	struct truth_reg *reg = &truth.regs[item->reg];
	s32 slot = truth_slot_of(item->event.data);
	if (slot == reg->slot)
		return;
	reg->slot = slot;
	reg->noted &= !reg->moving; /* two at once: who returns last is believed */
	reg->moving = 1;
	reg->loose = 0;
	reg->at_birth = 0;
	if (slot >= 0) {
		reg->life = truth.slots[slot].life;
		truth.named[reg->fd] |= 1u << slot;
		truth.slots[slot].touched = 1;
	}
}

static void truth_ended(struct sim_epitem *item)
{
	truth.regs[item->reg].live = 0;
}

/* -- what is so */

static struct truth_reg *truth_match(struct af_reg *reg)
{
	for (u32 i = truth.count; i-- > 0;) {
		struct truth_reg *r = &truth.regs[i];
		if ((u64)r->ep == reg->ep && (u64)r->file == reg->file && r->fd == reg->fd)
			return r;
	}
	return 0;
}

/* Does it last? Not when its file waits for its end only, after the call that dropped the last reference. */
static bool truth_lasts(struct truth_reg *r)
{
	return r->live && r->file->refs;
}

/* Is it of the slot's lives [from, to], and can the programs know of it? */
static bool truth_knows(struct truth_reg *r, s32 slot, u32 from, u32 to)
{
	return truth_lasts(r) && r->noted && !r->moving && !r->loose && r->slot == slot && r->life >= from && r->life <= to;
}

static struct truth_reg *truth_known(s32 slot, u32 from, u32 to)
{
	for (u32 i = 0; i < truth.count; i++)
		if (truth_knows(&truth.regs[i], slot, from, to))
			return &truth.regs[i];
	return 0;
}

/* One of the lives that end with the slot's last destroy, that will deliver; `ep`: in that instance. */
static bool truth_armed(s32 slot, struct sim_eventpoll *ep)
{
	struct truth_slot *s = &truth.slots[slot];
	for (u32 i = 0; i < truth.count; i++) {
		struct truth_reg *r = &truth.regs[i];
		if (truth_knows(r, slot, s->from, s->life) && !(AF_ASK && sim_disarmed(i)) && (!ep || r->ep == ep))
			return true;
	}
	return false;
}

static bool truth_is_free(s32 slot)
{
	return truth.slots[slot].state == TRUTH_FREE;
}

/* -- what must be told, and what may be */

static void truth_may(u32 what, s32 slot) { truth.may[slot] |= TRUTH_BITS(what); }
static void truth_must(u32 what, s32 slot)
{
	truth_may(what, slot);
	if (!truth.confused)
		truth.must[slot] |= TRUTH_BITS(what);
}

/* A destroy is judged now: its call is over, or its slot is used again. `ep`: its thread waits there, and need not be
 * asked yet of what is registered elsewhere. */
static bool truth_judge_at(s32 slot, struct sim_eventpoll *ep)
{
	struct truth_slot *s = &truth.slots[slot];
	if (s->state != TRUTH_FREE)
		return false;
	s->judged_from = s->from;
	s->judged_to = s->life;
	truth_may(AF_SUSPECT_FREED_REGISTERED, slot);
	bool registered = s->pending && truth_armed(slot, ep);
	if (registered)
		truth_must(AF_SUSPECT_FREED_REGISTERED, slot);
	if (registered || !ep || !truth_armed(slot, 0))
		s->pending = 0;
	return registered;
}

static bool truth_judge(s32 slot) { return truth_judge_at(slot, 0); }

/* Nothing is expected of what registers another object's memory. */
static void truth_others(s32 slot)
{
	for (u32 i = 0; i < truth.count; i++)
		if (truth.regs[i].slot == slot)
			truth.regs[i].noted = truth.regs[i].loose = 0;
}

/* A slot that was free when it was registered, and was not given out until the registering thread waits: its memory is
 * another object's, as far as anybody can tell. */
static void truth_judge_added(s32 slot, u32 thread, bool told)
{
	struct truth_slot *s = &truth.slots[slot];
	if (!s->adder || s->adder != 1 + thread)
		return;
	s->adder = 0;
	if (s->state != TRUTH_FREE || s->pending || told)
		return; /* a destroy that is judged now, or is still to be, covers it */
	truth_others(slot);
	s->state = TRUTH_OTHER;
	s->life += 1;
	s->from = s->life;
	s->stale = 0;
}

static void truth_judge_twice(s32 slot, u32 threads)
{
	struct truth_slot *s = &truth.slots[slot];
	if (s->twice & threads)
		truth_must(AF_SUSPECT_DOUBLE_DESTROY, slot);
	else if (s->state == TRUTH_FREE && s->stray)
		truth_may(AF_SUSPECT_DOUBLE_DESTROY, slot); /* if it was registered once */
	s->twice &= ~threads;
}

static void truth_settle(u32 thread, bool all, struct sim_eventpoll *ep)
{
	for (s32 slot = 0; slot < SIM_SLOTS; slot++) {
		struct truth_slot *s = &truth.slots[slot];
		truth_judge_twice(slot, all ? ~0u : 1u << thread);
		bool told = (all || s->destroyer == thread || s->rearmed & 1u << thread) && truth_judge_at(slot, ep);
		truth_judge_added(slot, all ? s->adder - 1 : thread, told);
	}
	for (u32 i = 0; i < truth.count; i++) {
		struct truth_reg *r = &truth.regs[i];
		if (truth_lasts(r) && r->noted && r->due && !r->told && (all || r->closer == thread) && r->slot >= 0 &&
		    truth.slots[r->slot].life == r->due_life && (!ep || r->ep == ep))
			truth_must(AF_SUSPECT_OUTLIVES_CLOSE, r->slot);
	}
}

/* -- the lives of slots */

static void truth_born_again(s32 slot)
{
	struct truth_slot *s = &truth.slots[slot];
	truth_judge(slot);
	truth_judge_twice(slot, ~0u);
	if (s->stale)
		truth_may(AF_SUSPECT_STALE_DELIVERY, slot); /* those that were only counted */
	for (u32 i = 0; i < truth.count; i++) {
		struct truth_reg *r = &truth.regs[i];
		if (r->slot != slot || !r->live)
			continue;
		if (r->loose && s->adder) {
			r->loose = 0;
			r->life = s->life + 1;
		} else if (r->noted && !r->moving) {
			r->at_birth = 1;
		}
	}
	if (s->adder)
		player_adopted(slot, s->life + 1);
	if (s->state != TRUTH_LIVE || s->inferred)
		s->from = s->life + 1;
	s->inferred = 0;
	s->state = TRUTH_LIVE;
	s->life += 1;
	s->touched = 0;
	s->adder = s->adders = 0;
	s->stale = 0;
	s->recycled = 0;
}

static void truth_create(s32 slot)
{
	struct truth_slot *s = &truth.slots[slot];
	if (s->state == TRUTH_UNSEEN || (s->state == TRUTH_OTHER && s->adder)) {
		if (!s->adder)
			truth_others(slot);
		s->life = s->from = s->state == TRUTH_UNSEEN ? 1 : s->life;
		s->state = TRUTH_LIVE;
		s->adder = 0;
	} else if (s->inferred && s->adder) {
		s->inferred = s->adder = 0; /* the create that registered it gives it out now */
	} else if (s->state == TRUTH_OTHER) {
		truth_others(slot);
		truth_born_again(slot);
	} else if (s->state == TRUTH_FREE || s->touched || !AF_CREATE_COMPLETE) {
		truth_born_again(slot);
	} /* else a constructor within a constructor */
}

/* A slot of which only a registration tells. */
static void truth_inferred(s32 slot)
{
	struct truth_slot *s = &truth.slots[slot];
	s->life = s->from = AF_HAVE_CREATE && !AF_CREATE_COMPLETE ? 0 : 1;
	if (AF_CREATE_COMPLETE)
		return; /* it is none, as long as create does not give it out */
	s->state = TRUTH_LIVE;
	s->inferred = AF_HAVE_CREATE;
}

/* A new registration is begun, as far as the kernel knows at that moment. */
static void truth_add_begun(s32 slot, u32 thread)
{
	struct truth_slot *s = &truth.slots[slot];
	if (AF_CREATE_COMPLETE) {
		if (s->state == TRUTH_UNSEEN)
			truth_inferred(slot);
		if (s->state == TRUTH_UNSEEN || s->state == TRUTH_OTHER) {
			if (!s->adder) {
				truth_others(slot);
				s->adder = 1 + thread;
			}
		} else if (s->state == TRUTH_FREE) {
			s->adders |= s->adder && s->adder != 1 + thread;
			s->adder = 1 + thread;
		}
		s->touched = 1;
		return;
	}
	if (s->state == TRUTH_UNSEEN) {
		truth_inferred(slot);
		s->adder = 1 + thread;
	} else if (s->state == TRUTH_FREE) {
		truth_born_again(slot);
	}
	s->touched = 1;
}

static void truth_destroy(s32 slot, u32 thread, bool nested, bool adding)
{
	struct truth_slot *s = &truth.slots[slot];
	if (s->state == TRUTH_FREE && s->adder && !nested) {
		/* registered by a create that has not returned, and ended already: that was its next life */
		truth_born_again(slot);
		s->inferred = 1;
	}
	if (s->state == TRUTH_FREE) {
		truth_may(AF_SUSPECT_DOUBLE_DESTROY, slot); /* of an earlier one, if this life is taken for another */
		if (!nested && !s->stray)
			s->twice |= s->twice ? 0 : 1u << thread; /* whoever comes later is only counted */
		return;
	}
	s->stray = s->state != TRUTH_LIVE && AF_CREATE_COMPLETE;
	s->pending = adding || truth_known(slot, s->from, s->life);
	s->state = TRUTH_FREE;
	s->destroyer = thread;
	s->rearmed = 0;
	s->adder = 0;
	truth.destroys++;
}

/* A freed slot's registration was modified: its events may come again, and it is judged again. */
static void truth_rearmed(s32 slot, u32 thread)
{
	truth.slots[slot].rearmed |= 1u << thread;
}

/* -- deliveries, at the wait's return: what was told of, by the registrations that told it */

static bool truth_power(u32 n) { return !(n & (n - 1)); }

static void truth_delivered(s32 slot, struct truth_reg *by)
{
	struct truth_slot *s = &truth.slots[slot];
	if (s->state == TRUTH_FREE) {
		truth_may(AF_SUSPECT_STALE_DELIVERY, slot);
		if (s->adder) { /* of one that a create may be giving out nobody can tell */
			s->judged_from = s->from;
			s->judged_to = s->life;
			truth_may(AF_SUSPECT_FREED_REGISTERED, slot);
			return;
		}
		s->stale++;
		if (truth_power(s->stale) && !s->adders)
			truth_must(AF_SUSPECT_STALE_DELIVERY, slot);
		truth_judge(slot);
		return;
	}
	if (s->state != TRUTH_LIVE)
		return;
	for (u32 i = 0; i < truth.count; i++) {
		struct truth_reg *r = &truth.regs[i];
		if (truth_lasts(r) && r->slot == slot && r->life < s->from)
			truth_may(AF_SUSPECT_RECYCLED_DELIVERY, slot);
	}
	if (truth_lasts(by) && by->slot == slot && by->at_birth && by->life < s->from && !s->recycled) {
		s->recycled = 1;
		truth_must(AF_SUSPECT_RECYCLED_DELIVERY, slot);
	}
}
