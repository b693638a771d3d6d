/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * Values that a function has only while it is being entered (DW_OP_entry_value), kept for the sites inside it.
 *
 * A call is known by its canonical frame address: two calls of one process that are under way never share
 * one, on whatever threads (or fibers) they run, and a new call in an old one's place overwrites its value.
 * A tail call replaces the frame and with it the value. Nothing is removed: the oldest go when the map is full.
 */
AF_FN int af_hit_entry(struct pt_regs *ctx, u32 entry, u64 cfa, u64 value)
{
	struct af_target *target = af_target_now();
	if (!target)
		return 0;
	struct af_call_key key = {.tgid = af_tgid(), .entry = entry, .cfa = cfa};
	struct af_entered now = {.armed = target->armed, .value = value};
	entered.update(&key, &now);
	return 0;
}

/* The value of the call that is under way; false when its entry was not seen, which is counted. */
AF_FN bool af_entered(u32 entry, u64 cfa, u64 *value)
{
	struct af_target *target = af_target_now();
	if (!target)
		return false;
	struct af_call_key key = {.tgid = af_tgid(), .entry = entry, .cfa = cfa};
	struct af_entered *found = entered.lookup(&key);
	/* an older one belongs to a program that this process ran before an exec */
	if (!found || found->armed != target->armed) {
		af_count(AF_C_ENTRY_UNSEEN);
		return false;
	}
	*value = found->value;
	return true;
}

/* DW_OP_div: signed, towards zero. BPF divides unsigned only. b is not zero. */
AF_FN u64 af_divide(u64 a, u64 b)
{
	u64 quotient = ((s64)a < 0 ? -a : a) / ((s64)b < 0 ? -b : b);
	return (s64)(a ^ b) < 0 ? -quotient : quotient;
}
