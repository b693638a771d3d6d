/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * The messages of a step against what the oracle said of it: each must be true, and none may be missing.
 */
static bool player_is_adding(s32 slot, struct af_reg *reg);

static bool truth_true(struct af_suspicion *m, s32 slot)
{
	struct truth_slot *s = &truth.slots[slot];
	struct truth_reg *r = truth_match(&m->reg);
	bool may = truth.may[slot] & TRUTH_BITS(m->head.what);
	switch (m->head.what) {
	case AF_SUSPECT_FREED_REGISTERED:
		if ((m->reg.flags & AF_R_NOT_ASKED) && player_is_adding(slot, &m->reg))
			return may; /* it says itself that it could not be asked */
		return may && r && truth_lasts(r) && r->slot == slot &&
		       (!r->noted || (r->life >= s->judged_from && r->life <= s->judged_to));
	case AF_SUSPECT_OUTLIVES_CLOSE:
		/* an ADD that was to fail when it began may bring a closed registration's identity back, to the byte: as
		 * long as it has not returned, nobody can know */
		if (!r || !truth_lasts(r) || ((r->noted || r->returned) && !r->closed) || r->told)
			return false;
		r->told = 1;
		return true;
	case AF_SUSPECT_FREED_IN_BATCH:
		return may || (m->trigger.flags & AF_F_NESTED); /* it says itself that the batch may be over */
	case AF_SUSPECT_ALIASED_SLOT:
		r = truth_match(&m->other);
		return may || ((m->other.flags & AF_R_NOT_ASKED) && player_is_adding(slot, &m->other)) ||
		       (r && r->live && !r->noted && !r->returned);
	case AF_SUSPECT_RECYCLED_DELIVERY:
		if ((m->reg.flags & AF_R_NOT_ASKED) && player_is_adding(slot, &m->reg))
			return true; /* it says itself that it could not be asked */
		/* as above: an ADD that was to fail may bring an identity back */
		return r && truth_lasts(r) && r->slot == slot && ((may && r->life < s->from) || (!r->noted && !r->returned));
	default:
		return may;
	}
}

static void truth_message(struct af_suspicion *m)
{
	u32 what = m->head.what;
	s32 slot = truth_slot_of(m->slot.addr ? m->slot.addr : m->reg.slot);
	if (slot < 0) {
		truth.told_any |= TRUTH_BITS(what);
		if (!(truth.may_any & TRUTH_BITS(what)))
			truth_wrong(FALSE_ALARM, what, 99);
		return;
	}
	/* the rest of a count that was begun: nothing happened now, but something had been told of it */
	if ((m->trigger.flags & AF_F_OWED) && what != AF_SUSPECT_STALE_DELIVERY) {
		if (!(truth.told[slot] & TRUTH_BITS(what)))
			truth_wrong(FALSE_ALARM, what, slot);
		return;
	}
	truth.told[slot] |= TRUTH_BITS(what);
	if (what == AF_SUSPECT_FREED_REGISTERED)
		truth.slots[slot].pending = 0;
	truth.told_any |= TRUTH_BITS(what);
	if (!truth_true(m, slot))
		truth_wrong(FALSE_ALARM, what, slot);
}

static void truth_step_begins(void)
{
	__builtin_memset(truth.must, 0, sizeof(truth.must));
	__builtin_memset(truth.may, 0, sizeof(truth.may));
	__builtin_memset(truth.told, 0, sizeof(truth.told));
	truth.may_any = truth.must_any = truth.told_any = 0;
	sim_ring_used = 0;
	sim_messages = 0;
}

/* Every message of the run, for who wants to read them. */
static u8 run_ring[SIM_RING_BYTES];
static u32 run_used;

static void truth_keep(struct af_urgent_head *head)
{
	if (run_used + head->size > sizeof(run_ring))
		return;
	__builtin_memcpy(run_ring + run_used, head, head->size);
	run_used += head->size;
}

static void truth_step_ends(void)
{
	for (u32 i = 0; i < sim_messages; i++) {
		struct af_urgent_head *head = (struct af_urgent_head *)(sim_ring + sim_message_at[i]);
		truth_keep(head);
		if (head->type == AF_URGENT_SUSPICION)
			truth_message((struct af_suspicion *)head);
	}
	if (truth.must_any & ~truth.told_any)
		truth_wrong(MISSED, __builtin_ctz(truth.must_any & ~truth.told_any), 99);
	for (u32 slot = 0; slot < SIM_SLOTS; slot++) {
		u32 missed = truth.must[slot] & ~truth.told[slot];
		if (missed)
			truth_wrong(MISSED, __builtin_ctz(missed), slot);
	}
}
