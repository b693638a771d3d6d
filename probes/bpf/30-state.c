/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * What the kernel does not keep: the lives of slots, and beside each registration who made it, when and for which
 * life of which slot. Whether a registration exists is never remembered: it is asked.
 */
AF_FN u64 af_slot_address(u64 userdata)
{
	return (userdata & AF_UD_MASK) - AF_UD_OFFSET;
}

AF_FN struct af_slot *af_slot_of(u32 tgid, u32 epoch, u64 addr)
{
	struct af_slot_key key = {.tgid = tgid, .epoch = epoch, .addr = addr};
	return slots.lookup(&key);
}

AF_FN struct af_slot *af_slot_find(struct af_target *target, u64 addr)
{
	return af_slot_of(af_tgid(), target->epoch, addr);
}

AF_FN struct af_slot *af_slot_new(struct af_target *target, u64 addr)
{
	struct af_slot_key key = {.tgid = af_tgid(), .epoch = target->epoch, .addr = addr};
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
	slot->tgid = key.tgid;
	slot->epoch = key.epoch;
	slot->fd = -1;
	slot->epfd = -1;
	slot->old_fd = -1;
	slot->old_epfd = -1;
	return slot;
}

AF_FN void af_slot_forget(struct af_slot *slot)
{
	struct af_slot_key key = {.tgid = slot->tgid, .epoch = slot->epoch, .addr = slot->addr};
	slots.delete(&key);
}

#define af_embedded_at(offset)                                                                            \
	if (!found && userdata > (offset)) {                                                              \
		struct af_slot *holder = af_slot_find(target, (userdata & AF_UD_MASK) - (offset));        \
		if (holder && (holder->flags & AF_S_CREATE_SEEN))                                         \
			found = holder->addr;                                                             \
	}

/* The address of the slot that userdata stands for: itself, or what create gave out around it. */
AF_FN u64 af_slot_behind(struct af_target *target, u64 userdata, bool registering)
{
	u64 addr = af_slot_address(userdata);
#ifdef AF_EMBEDDED
	struct af_slot_key key = {.tgid = af_tgid(), .epoch = target->epoch, .addr = userdata};
	u64 *known = inner.lookup(&key);
	if (known)
		return *known;
	if (registering && !af_slot_find(target, addr)) {
		u64 found = 0;
		AF_EMBEDDED(af_embedded_at)
		if (found) {
			inner.update(&key, &found);
			return found;
		}
	}
#endif
	return addr;
}

AF_FN void af_flag(struct af_slot *slot, u64 flags)
{
	__sync_fetch_and_or(&slot->flags, flags);
}

AF_FN void af_unflag(struct af_slot *slot, u64 flags)
{
	__sync_fetch_and_and(&slot->flags, ~flags);
}

AF_FN void af_at_set(struct af_at *at, u64 enter, u64 ts, u64 ip, u32 tid, s32 stack)
{
	at->enter = enter;
	at->ts = ts;
	at->ip = ip;
	at->tid = tid;
	at->stack = stack;
}

AF_FN void af_at_clear(struct af_at *at)
{
	af_at_set(at, 0, 0, 0, 0, -1);
}

AF_FN u32 af_waiter(u64 ep)
{
	u32 *tid = waiters.lookup(&ep);
	return tid && *tid != AF_MANY_WAITERS ? *tid : 0;
}

AF_FN struct af_reg *af_note(u64 ep, u64 file, s32 fd)
{
	struct af_reg_key key = {.ep = ep, .file = file, .fd = fd};
	return regs.lookup(&key);
}

/* The note of a link, or null when the registration it meant has given way to a later one. */
AF_FN struct af_reg *af_link_note(struct af_link *link)
{
	if (!link->ep)
		return 0;
	struct af_reg *note = af_note(link->ep, link->file, link->fd);
	return note && note->add.enter == link->added ? note : 0;
}

/* Does the registration that was noted exist now? Without anybody to ask, as far as calls told. */
AF_FN u32 af_note_exists(struct af_reg *note)
{
	if (note->state == AF_REG_ENDED)
		return AF_GONE;
	u32 answer = af_ask(note->item, note->ep, note->file, note->fd, note->userdata);
	if (answer == AF_CANNOT_TELL && (note->flags & (AF_R_BY_DEL | AF_R_BY_CLOSE)))
		return AF_GONE;
	if (answer == AF_GONE && note->state == AF_REG_ADDING)
		return AF_CANNOT_TELL; /* the call is under way */
	return answer;
}

/* `copy` becomes what is known of the registration now, with the state that the kernel answered. */
AF_FN void af_note_copy(struct af_reg *copy, struct af_reg *note, u32 answer)
{
	af_copy(copy, note, sizeof(*copy));
	copy->state = answer == AF_GONE ? AF_REG_ENDED : note->flags & AF_R_BY_CLOSE ? AF_REG_ORPHAN : AF_REG_LIVE;
	if (answer == AF_CANNOT_TELL)
		copy->flags |= AF_R_NOT_ASKED;
	copy->dup_fd = -1;
	if (answer == AF_GONE)
		return;
	copy->ino = af_inode(note->file);
	u64 file = note->file;
	struct af_dup *dup = dups.lookup(&file);
	if (dup && af_tgid() == note->tgid && af_file(dup->newfd) == file && dup->newfd != note->fd) {
		copy->dup_fd = dup->newfd;
		af_at_set(&copy->dup, dup->enter, dup->ts, dup->ip, dup->tid, dup->stack);
	}
}

/* The last registration under a number: what is said when a later call on the number fails. */
AF_FN void af_number_keep(struct af_reg *note)
{
	struct af_fd_key key = {.tgid = note->tgid, .epoch = note->epoch, .fd = note->fd};
	numbers.update(&key, note);
}

/* The slot that a registration is about: of the process that made it, whoever touches it. */
AF_FN struct af_slot *af_note_slot(struct af_reg *note)
{
	return af_slot_of(note->tgid, note->epoch, note->slot);
}

AF_FN struct af_reg *af_number(struct af_target *target, s32 fd)
{
	struct af_fd_key key = {.tgid = af_tgid(), .epoch = target->epoch, .fd = fd};
	return numbers.lookup(&key);
}

AF_FN void af_unlink(struct af_slot *slot, struct af_reg *note)
{
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		struct af_link *link = &slot->links[i];
		if (link->ep == note->ep && link->file == note->file && link->fd == note->fd &&
		    link->added == note->add.enter)
			link->ep = 0;
	}
}

AF_FN bool af_linked(struct af_slot *slot)
{
	return slot->links[0].ep || slot->links[1].ep || slot->links[2].ep || slot->links[3].ep;
}

/* The registration is over. What may still be asked of it goes with its number. */
AF_FN void af_note_ended(struct af_reg *note, struct af_slot *slot)
{
	struct af_reg_key key = {.ep = note->ep, .file = note->file, .fd = note->fd};
	if (slot)
		af_unlink(slot, note);
	af_number_keep(note);
	regs.delete(&key);
	if (slot && (slot->flags & AF_S_UNBORN) && !af_linked(slot))
		af_slot_forget(slot);
}

/* A place for one more registration of the slot; those that are over make room, then the oldest. */
AF_FN u32 af_link_place(struct af_slot *slot, u64 ep, u64 file, s32 fd)
{
	u32 place = AF_SLOT_LINKS, empty = AF_SLOT_LINKS, oldest = 0, age = ~0u;
	AF_LOOP
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		struct af_link *link = &slot->links[i];
		if (!link->ep) {
			empty = i;
			continue;
		}
		if (link->ep == ep && link->file == file && link->fd == fd)
			return i;
		struct af_reg *note = af_link_note(link);
		if (!note || af_note_exists(note) == AF_GONE)
			place = i;
		if (link->gen < age) {
			age = link->gen;
			oldest = i;
		}
	}
	if (empty < AF_SLOT_LINKS)
		return empty;
	if (place < AF_SLOT_LINKS)
		return place;
	af_flag(slot, AF_S_LINKS_FULL);
	af_count(AF_C_LINKS_FULL);
	return oldest;
}

AF_FN void af_link_set(struct af_slot *slot, struct af_reg *note)
{
	u32 place = af_link_place(slot, note->ep, note->file, note->fd);
	struct af_link *link = &slot->links[place & (AF_SLOT_LINKS - 1)];
	link->file = note->file;
	link->added = note->add.enter;
	link->fd = note->fd;
	link->epfd = note->epfd;
	link->gen = note->gen;
	link->ep = note->ep;
}

/* Note a registration; any older one of the same (ep, file, fd) is over. Returns null when there is no room. */
AF_FN struct af_reg *af_note_new(struct af_target *target, u64 ep, u64 file, s32 fd, s32 epfd, u64 userdata,
				 u64 addr, u32 gen, u32 events, u64 enter)
{
	struct af_reg_key key = {.ep = ep, .file = file, .fd = fd};
	int zero = 0;
	struct af_reg *empty = empty_reg.lookup(&zero);
	if (!empty)
		return 0;
	regs.update(&key, empty);
	struct af_reg *note = regs.lookup(&key);
	if (!note) {
		af_count(AF_C_REGS_FULL);
		return 0;
	}
	note->userdata = userdata;
	note->slot = addr;
	note->ep = ep;
	note->file = file;
	note->tgid = af_tgid();
	note->epoch = target->epoch;
	note->gen = gen;
	note->epfd = epfd;
	note->fd = fd;
	note->events = events;
	note->state = AF_REG_ADDING;
	note->dup_fd = -1;
	note->add.enter = enter;
	note->add.stack = -1;
	note->mod.stack = -1;
	note->end.stack = -1;
	note->dup.stack = -1;
	return note;
}

/* A slot of which only a registration tells: it was there before us, or create is not probed everywhere. */
AF_FN struct af_slot *af_slot_inferred(struct af_target *target, u64 addr)
{
	struct af_slot *slot = af_slot_new(target, addr);
	if (!slot)
		return 0;
	bool unborn = AF_CREATE_COMPLETE && !(target->flags & AF_T_LATE);
	slot->state = AF_SLOT_LIVE;
	slot->gen = AF_HAVE_CREATE && !unborn ? 0 : 1;
	slot->live_from = slot->gen;
	slot->flags = unborn ? AF_S_UNBORN : AF_HAVE_CREATE ? AF_S_INFERRED : 0;
	return slot;
}

/* A registration that the kernel has and we did not see being made. */
AF_FN struct af_reg *af_note_inferred(struct af_target *target, u64 ep, u64 file, s32 fd, s32 epfd, u64 userdata,
				      u32 events, u64 enter, u64 item)
{
	if (AF_IS_RESERVED(userdata))
		return 0;
	u64 addr = af_slot_behind(target, userdata, true);
	struct af_slot *slot = af_slot_find(target, addr);
	if (!slot)
		slot = af_slot_inferred(target, addr);
	struct af_reg *note = af_note_new(target, ep, file, fd, epfd, userdata, addr, slot ? slot->gen : 0, events, enter);
	if (!note)
		return 0;
	note->flags |= AF_R_INFERRED;
	note->state = AF_REG_LIVE;
	note->item = item;
	if (slot) {
		af_link_set(slot, note);
		if (slot->fd < 0) {
			slot->fd = fd;
			slot->epfd = epfd;
		}
	}
	return note;
}

/* A link read from fdinfo knows numbers only. In a thread of the process they can be looked up. */
AF_FN void af_resolve(struct af_target *target, struct af_slot *slot)
{
#if AF_ASK
	if (!(slot->flags & AF_S_INFERRED) || slot->tgid != af_tgid())
		return;
	struct af_link *link = &slot->links[0]; /* those of later registrations are never without a file */
	if (!link->ep || link->file)
		return;
	struct af_epoll_event event = {};
	u64 userdata = link->added, ep = af_eventpoll(link->epfd), file = af_file(link->fd);
	u64 item = af_find_item(ep, file, link->fd, &event);
	link->ep = 0;
	if (!item || item == AF_TOO_MANY || event.data != userdata)
		return;
	struct af_reg *note = af_note(ep, file, link->fd);
	if (!note) {
		note = af_note_new(target, ep, file, link->fd, link->epfd, userdata, slot->addr, link->gen, event.events, 1);
		if (!note)
			return;
		note->flags |= AF_R_INFERRED;
		note->state = AF_REG_LIVE;
		note->item = item;
	}
	link->file = file;
	link->added = note->add.enter;
	link->ep = ep;
#endif
}

#define AF_WHENEVER (~0ull)

/* The first of the wanted registrations of the slot that exists; a copy of it in *copy, in state AF_REG_NONE when there
 * is none. Links whose registration is over are dropped on the way. */
AF_FN bool af_existing_in(struct af_slot *slot, struct af_wanted *w, struct af_reg *copy)
{
	/* found or not: in memory, so that the verifier's states of the loop stay equal */
	AF_KEPT(copy->state) = AF_REG_NONE;
	AF_LOOP
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		struct af_link *link = &slot->links[i];
		if (!link->ep || link->gen < AF_KEPT(w->from) || link->gen >= AF_KEPT(w->to) || !link->file)
			continue;
		struct af_reg *note = af_link_note(link);
		if (!note) {
			link->ep = 0;
			continue;
		}
		if (note->add.enter >= AF_KEPT(w->before))
			continue;
		u32 answer = af_note_exists(note);
		if (answer == AF_GONE) {
			af_note_ended(note, 0);
			link->ep = 0;
			continue;
		}
		if (AF_KEPT(w->armed) && answer == AF_EXISTS && af_disarmed(note->item))
			continue;
		if (AF_KEPT(copy->state) == AF_REG_NONE)
			af_note_copy(copy, note, answer);
	}
	return AF_KEPT(copy->state) != AF_REG_NONE;
}

int af_find_existing(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	struct af_slot *slot = s ? slots.lookup(&s->key) : 0;
	return slot ? af_existing_in(slot, &s->wanted, &s->reg) : 0;
}

AF_FN void af_call_about(struct af_scratch *s, struct af_slot *slot)
{
	s->key.tgid = slot->tgid;
	s->key.epoch = slot->epoch;
	s->key.addr = slot->addr;
}

/* The same, in s->reg. */
AF_FN bool af_existing(struct af_slot *slot, u32 from, u32 to, u64 before, bool armed, struct af_scratch *s)
{
	af_call_about(s, slot);
	s->wanted = (struct af_wanted){.before = before, .from = from, .to = to, .armed = armed};
	AF_KEPT(s->reg.state) = AF_REG_NONE;
	return AF_CALL(1, af_find_existing, s) != 0;
}

/* Any registration of the slot's life that is remembered, existing or not: for the story. None: state AF_REG_NONE. */
AF_FN bool af_remembered_in(struct af_slot *slot, struct af_reg *copy)
{
	struct af_reg *note = 0;
	AF_KEPT(copy->state) = AF_REG_NONE;
	AF_LOOP
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		struct af_link *link = &slot->links[i];
		if (!link->ep || link->gen != slot->gen)
			continue;
		note = af_link_note(link);
		if (note)
			break;
	}
	if (note) {
		af_note_copy(copy, note, af_note_exists(note));
		return true;
	}
	if (slot->fd < 0)
		return false;
	struct af_fd_key key = {.tgid = slot->tgid, .epoch = slot->epoch, .fd = slot->fd};
	struct af_reg *last = numbers.lookup(&key);
	if (!last || last->slot != slot->addr || last->gen != slot->gen)
		return false;
	af_copy(copy, last, sizeof(*copy));
	copy->state = AF_REG_ENDED;
	return true;
}

int af_find_remembered(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	struct af_slot *slot = s ? slots.lookup(&s->key) : 0;
	return slot ? af_remembered_in(slot, &s->reg) : 0;
}

/* The same, in s->reg. */
AF_FN bool af_remembered(struct af_slot *slot, struct af_scratch *s)
{
	af_call_about(s, slot);
	AF_KEPT(s->reg.state) = AF_REG_NONE;
	return AF_CALL(2, af_find_remembered, s) != 0;
}

/* A failed ADD, as a registration that never was. */
AF_FN void af_failed_copy(struct af_reg *copy, struct af_failed *f, u32 tgid, u32 epoch)
{
	__builtin_memset(copy, 0, sizeof(*copy));
	copy->userdata = f->slot;
	copy->slot = f->slot;
	copy->tgid = af_tgid();
	copy->tgid = tgid;
	copy->epoch = epoch;
	copy->gen = f->gen;
	copy->epfd = f->epfd;
	copy->fd = f->fd;
	copy->state = AF_REG_ENDED;
	copy->flags = AF_R_ADD_FAILED;
	copy->error = f->error;
	copy->dup_fd = -1;
	af_at_set(&copy->add, f->enter, f->ts, f->ip, f->tid, f->stack);
	af_at_clear(&copy->mod);
	af_at_clear(&copy->end);
	af_at_clear(&copy->dup);
}

/* The last ADD of this life of the slot that failed, if none has succeeded since. */
AF_FN bool af_failed_of(struct af_slot *slot, struct af_reg *copy)
{
	struct af_slot_key key = {.tgid = slot->tgid, .epoch = slot->epoch, .addr = slot->addr};
	struct af_failed *f = failed_slots.lookup(&key);
	if (!f || f->gen != slot->gen || f->ts < slot->add.ts)
		return false;
	af_failed_copy(copy, f, slot->tgid, slot->epoch);
	return true;
}

/* The same of a number, where nothing was registered under it since. */
AF_FN struct af_failed *af_failed_number(struct af_target *target, s32 fd, struct af_reg *last)
{
	struct af_fd_key key = {.tgid = af_tgid(), .epoch = target->epoch, .fd = fd};
	struct af_failed *f = failed.lookup(&key);
	return f && (!last || (f->ts > last->add.ts && f->ts > last->end.ts)) ? f : 0;
}

/* The thread's open batch of that number, or null. */
AF_FN struct af_batch *af_open_batch(struct af_thread *t, u32 number)
{
	AF_LOOP
	for (u32 i = 0; i < AF_BATCHES; i++)
		if (i < t->depth && t->open[i].number == number)
			return &t->open[i];
	return 0;
}

/* The open batch of that number, of the thread that got the slot's last delivery, if entry `index` of it in user memory
 * still names the slot; null when it does not, or cannot be said to. */
AF_FN struct af_batch *af_batch_of(struct af_target *target, struct af_slot *slot, u32 number, u32 index, u64 sp)
{
	if (!slot->last_tid)
		return 0;
	u64 id = ((u64)slot->tgid << 32) | slot->last_tid;
	struct af_thread *t = threads.lookup(&id);
	if (!t)
		return 0;
	struct af_batch *b = af_open_batch(t, number);
	if (!b || index >= b->count)
		return 0;
	/* an array on the stack is over when its frame is gone; one that lies below the wait's stack pointer is none */
	if (id == bpf_get_current_pid_tgid() && sp > b->events && b->events >= b->sp)
		return 0;
	struct af_epoll_event event = {};
	if (bpf_probe_read_user(&event, sizeof(event), (void *)(b->events + index * sizeof(event))))
		return 0;
	return !(AF_IS_RESERVED(event.data)) && af_slot_behind(target, event.data, false) == slot->addr ? b : 0;
}

/* Is this the object that the slot's memory names now? */
AF_FN bool af_names_object(struct af_slot *slot, u64 object)
{
#if AF_OBJECT_OFFSET >= 0
	u64 named = 0;
	return !bpf_probe_read_user(&named, sizeof(named), (void *)(slot->addr + AF_OBJECT_OFFSET)) && named == object;
#else
	return true;
#endif
}

/* Does the slot still hold the object it was registered with? Not when another protocol took it over: then
 * the dispatch probe says nothing about it. */
AF_FN bool af_holds_object(struct af_slot *slot)
{
#if AF_OBJECT_IS_SLOT
	return true;
#elif AF_OBJECT_OFFSET >= 0
	u64 object = 0;
	if (!slot->object || bpf_probe_read_user(&object, sizeof(object), (void *)(slot->addr + AF_OBJECT_OFFSET)))
		return false;
	return object == slot->object;
#else
	return false;
#endif
}

/* What an event is about, as one of 64 bits: IN, PRI, OUT, ERR, HUP and RDHUP. */
#define AF_KIND(events) (1ull << (((events) & 31) | ((events) >> 13 & 1) << 5))

/* Do dispatches tell of events of the slot's last kind? Not of those that other functions answer, as far as seen. */
AF_FN bool af_tells(struct af_target *target, struct af_slot *slot)
{
	u64 kind = AF_KIND(slot->last_events);
	return (target->answered & kind) && !(target->unanswered & kind);
}

AF_FN u64 af_signature(struct af_slot *slot, bool registered)
{
	u64 f = slot->flags;
	u64 sig = 0;
	if (slot->add.ts)
		sig |= AF_SIG_ADD;
	if (f & AF_S_ADD_BY_OTHER)
		sig |= AF_SIG_ADD_OTHER;
	if (slot->deliveries)
		sig |= AF_SIG_DELIVERED;
	if (f & AF_S_DELETED)
		sig |= AF_SIG_DEL;
	else if (slot->del.ts)
		sig |= AF_SIG_DEL_AFTER_CLOSE;
	if (f & AF_S_DEL_BY_OTHER)
		sig |= AF_SIG_DEL_OTHER;
	if (slot->close.ts)
		sig |= AF_SIG_CLOSE;
	if (f & AF_S_CLOSE_BY_OTHER)
		sig |= AF_SIG_CLOSE_OTHER;
	if (slot->after_close)
		sig |= AF_SIG_AFTER_CLOSE;
	if (f & AF_S_DESTROY_BY_OTHER)
		sig |= AF_SIG_DESTROY_OTHER;
	if (f & AF_S_CLOSE_IN_BATCH)
		sig |= AF_SIG_CLOSE_IN_BATCH;
	if (f & AF_S_INFERRED)
		sig |= AF_SIG_INFERRED;
	if (f & AF_S_ORPHANED)
		sig |= AF_SIG_ORPHANED;
	if (f & AF_S_ENDED_AFTER)
		sig |= AF_SIG_ENDED_AFTER;
	if (f & AF_S_NOT_JUDGED)
		sig |= AF_SIG_NOT_JUDGED;
	if (f & AF_S_WAITER_KNOWN)
		sig |= AF_SIG_WAITER_KNOWN;
	if (registered)
		sig |= AF_SIG_REGISTERED;
	return sig;
}

AF_FN void af_slot_counts_cleared(struct af_slot *slot)
{
	slot->first_delivery = 0;
	slot->last_delivery = 0;
	slot->last_delivery_enter = 0;
	slot->last_dispatch = 0;
	slot->first_after_close = 0;
	slot->last_after_close = 0;
	slot->object = 0;
	slot->idle = 0;
	slot->progressed = 0;
	slot->idle_since = 0;
	slot->idle_reported = 0;
	slot->hup_since = 0;
	slot->deliveries = 0;
	slot->dispatches = 0;
	slot->after_close = 0;
	slot->stale = 0;
	slot->stale_reported = 0;
	slot->double_destroys = 0;
	slot->last_batch = 0;
	slot->last_tid = 0;
	slot->last_index = 0;
	slot->consecutive = 0;
	slot->waiter = 0;
	slot->recycled = 0;
	slot->recycled_reported = 0;
	slot->batch_count = 0;
	slot->undispatched = 0;
	slot->doubtful = 0;
	slot->dispatch_site = 0;
	slot->stale_dispatches = 0;
	slot->held_batch = 0;
}

/* The registrations that were made after the destroy are of the next life: of a create that registers the slot before
 * it gives it out, or of another object in the same memory. Returns whether there are any. */
AF_FN bool af_links_renewed(struct af_slot *slot, u64 destroyed)
{
	bool registered = false;
	for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
		struct af_link *link = &slot->links[i];
		struct af_reg *note = af_link_note(link);
		if (!note || note->add.enter < destroyed)
			continue;
		link->gen = slot->gen;
		note->gen = slot->gen;
		slot->fd = note->fd;
		slot->epfd = note->epfd;
		slot->add = note->add;
		registered = true;
	}
	return registered;
}

/* A freed slot's address was registered, and no create gave it out: its memory is another object's by now (or it was
 * registered after its end; nobody can tell). It is no slot until a create says so. */
AF_FN void af_slot_foreign(struct af_slot *slot)
{
	slot->prev_destroy = slot->destroy;
	slot->gen += 1;
	slot->live_from = slot->gen;
	af_links_renewed(slot, slot->destroy.ts);
	slot->state = AF_SLOT_LIVE;
	slot->flags = AF_S_UNBORN | (slot->flags & AF_S_DOUBLED);
	af_at_clear(&slot->create);
	af_at_clear(&slot->del);
	af_at_clear(&slot->close);
	af_at_clear(&slot->destroy);
	af_slot_counts_cleared(slot);
	af_count(AF_C_ADDS_FREED);
}

#define AF_SETTLED_OUTLIVES 1u /* s->other: the registration that outlived its close */
#define AF_SETTLED_FREED 2u    /* s->reg: the one that existed when the destroying call was over */
#define AF_SETTLED_TWICE 4u    /* destroyed while it was free; s->reg: what is remembered of it */
#define AF_S_PUT_OFF (AF_S_PENDING | AF_S_CLOSE_PENDING | AF_S_TWICE_PENDING)

/* Judge what was put off: a close that the registration outlived, a destroy while it was registered. Called when the
 * calls are over: at the thread's next wait, when the slot is born again or delivered, or from outside. `waited`: the
 * thread that registered a free slot waits, so that no create is under way that would give it out. s->judge: which of
 * AF_S_PUT_OFF, since a destroy of another thread may still be under way. What is to be sent is in s->send; deciding and sending are apart, since the verifier cannot join states that differ by a
 * ring entry. */
AF_FN void af_settled(struct af_slot *slot, struct af_scratch *s)
{
	u64 was = slot->flags & AF_KEPT(s->judge);
#define waited AF_KEPT(s->waited)
	bool added = slot->adder != 0;
	AF_KEPT(s->send) = 0;
	if (was & AF_S_CLOSE_PENDING) {
		af_unflag(slot, AF_S_CLOSE_PENDING);
		AF_LOOP
		for (u32 i = 0; i < AF_SLOT_LINKS; i++) {
			struct af_link *link = &slot->links[i];
			struct af_reg *note = link->file ? af_link_note(link) : 0;
			if (!note || (note->flags & (AF_R_BY_CLOSE | AF_R_REPORTED)) != AF_R_BY_CLOSE)
				continue;
			if (AF_KEPT(s->send)) {
				af_flag(slot, AF_S_CLOSE_PENDING); /* one at a time */
				break;
			}
			u32 answer = af_note_exists(note);
			if (answer == AF_GONE) {
				af_note_ended(note, 0);
				link->ep = 0;
				continue;
			}
			note->flags |= AF_R_REPORTED;
			af_note_copy(&s->other, note, answer);
			if (note->gen == slot->gen)
				af_flag(slot, AF_S_ORPHANED);
			AF_KEPT(s->send) = AF_SETTLED_OUTLIVES;
		}
	}
	if ((was & AF_S_PENDING) && (__sync_fetch_and_and(&slot->flags, ~AF_S_PENDING) & AF_S_PENDING)) {
		bool registered = af_existing(slot, slot->live_from, slot->gen + 1,
					      added ? slot->destroy.ts : AF_WHENEVER, true, s);
		if (!(slot->flags & AF_S_REARMED))
			af_lifetime_out(slot, af_signature(slot, registered));
		if (registered) {
			af_flag(slot, AF_S_FREED_TOLD);
			AF_KEPT(s->send) |= AF_SETTLED_FREED;
		}
	}
	bool registered = AF_KEPT(s->send) & AF_SETTLED_FREED;
	if (was & AF_S_TWICE_PENDING) {
		af_unflag(slot, AF_S_TWICE_PENDING);
		if (!registered)
			af_remembered(slot, s);
		AF_KEPT(s->send) |= AF_SETTLED_TWICE;
	}
	if (added && waited)
		slot->adder = 0;
	/* a destroy that is still to be judged covers it */
	if (!registered && added && waited && slot->state == AF_SLOT_FREE && !(slot->flags & AF_S_PENDING))
		af_slot_foreign(slot);
#undef waited
}

/* What af_settled found, one of s->send. */
int af_send_settled(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	struct af_slot *slot = s ? slots.lookup(&s->key) : 0;
	if (!slot)
		return 0;
	u32 which = s->send & -s->send, tgid = slot->tgid;
	struct af_target *target = targets.lookup(&tgid);
	bool freed = which != AF_SETTLED_OUTLIVES, twice = which == AF_SETTLED_TWICE;
	struct af_reg *reg = freed ? &s->reg : &s->other;
	struct af_at *at = twice ? &slot->again : freed ? &slot->destroy : &reg->end;
	struct af_trigger_args *a = &s->args;
	__builtin_memset(a, 0, sizeof(*a));
	a->ts = at->ts;
	a->enter = freed ? at->ip : at->enter;
	a->addr = slot->addr;
	a->gen = twice ? slot->gen : reg->gen;
	a->fd = twice ? slot->fd : reg->fd;
	a->epfd = twice ? slot->epfd : reg->epfd;
	a->flags = twice && (slot->flags & AF_S_USED_AFTER) ? AF_F_REFCOUNT : 0;
	a->stack = at->stack;
	a->kind = freed ? AF_DESTROYED : AF_CLOSED;
	a->tid = at->tid;
	bool refused = twice && af_failed_of(slot, &s->other);
	af_suspect(twice ? AF_SUSPECT_DOUBLE_DESTROY
			 : freed ? AF_SUSPECT_FREED_REGISTERED : AF_SUSPECT_OUTLIVES_CLOSE,
		   a, slot->tgid, target, 0, slot, reg, refused ? &s->other : 0);
	return 0;
}

int af_settle_slot(struct af_scratch *given)
{
	struct af_scratch *s = af_own(given);
	struct af_slot *slot = s ? slots.lookup(&s->key) : 0;
	if (!slot)
		return 0;
	af_settled(slot, s);
	AF_LOOP
	for (u32 i = 0; i < 3; i++) {
		if (!AF_KEPT(s->send))
			break;
		AF_CALL(3, af_send_settled, s);
		AF_KEPT(s->send) &= AF_KEPT(s->send) - 1;
	}
	return 0;
}

AF_FN void af_settle_only(struct af_slot *slot, struct af_scratch *s, bool waited)
{
	af_call_about(s, slot);
	s->waited = waited;
	AF_CALL(0, af_settle_slot, s);
}

AF_FN void af_settle(struct af_slot *slot, struct af_scratch *s, bool waited)
{
	AF_KEPT(s->judge) = AF_S_PUT_OFF;
	af_settle_only(slot, s, waited);
}

/* To be judged at this thread's next wait, unless something brings it up before. */
AF_FN void af_put_off(struct af_thread *t, struct af_slot *slot, u64 judge)
{
	if (t->pending_next - t->pending_first >= AF_PENDING) {
		/* a worker that never waits: the look from outside settles what it left behind */
		t->pending_first += 1;
		af_count(AF_C_PENDING_FULL);
	}
	struct af_pending_key key = {.id = bpf_get_current_pid_tgid(), .index = t->pending_next & (AF_PENDING - 1)};
	struct af_pending_slot value = {.addr = slot->addr, .judge = judge, .gen = slot->gen,
					.epoch = slot->epoch};
	if (pending.update(&key, &value)) {
		af_count(AF_C_PENDING_FULL);
		return;
	}
	t->pending_next += 1;
}

/* A new generation begins at this address; what the old one still owes is judged and sent first. */
AF_FN void af_slot_reborn(struct af_target *target, struct af_slot *slot, u64 flags, struct af_scratch *s)
{
	bool was_live = slot->state == AF_SLOT_LIVE && !(slot->flags & (AF_S_INFERRED | AF_S_UNBORN));
	if (slot->flags & AF_S_UNBORN) /* another object's registrations say nothing of this life */
		for (u32 i = 0; i < AF_SLOT_LINKS; i++)
			slot->links[i].ep = 0;
	af_settle(slot, s, false);
	/* what was counted and not told: who reads takes every count of the slot from the one message */
	u32 owed = slot->idle_reported && slot->idle > slot->idle_reported ? AF_SUSPECT_HOT
		   : slot->stale != slot->stale_reported ? AF_SUSPECT_STALE_DELIVERY
		   : slot->recycled != slot->recycled_reported ? AF_SUSPECT_RECYCLED_DELIVERY
		   : slot->stale_dispatches > 1 ? AF_SUSPECT_STALE_DISPATCH : 0;
	if (owed) {
		struct af_trigger_args a = {.ts = slot->last_delivery, .enter = slot->last_delivery_enter,
					    .addr = slot->addr, .gen = slot->gen, .fd = slot->consecutive,
					    .epfd = slot->epfd, .stack = -1, .kind = AF_DELIVERED,
					    .flags = AF_F_OWED, .tid = slot->last_tid};
		slot->stale_reported = slot->stale;
		af_remembered(slot, s);
		af_suspect(owed, &a, slot->tgid, target, 0, slot, &s->reg, 0);
	}
	u64 destroyed = slot->destroy.ts;
	/* of a life that a destroy has ended, that is: not of an owner that still has it */
	bool older = af_existing(slot, 0, was_live ? slot->live_from : slot->gen + 1,
				 slot->adder ? destroyed : AF_WHENEVER, false, s);
	slot->old_fd = older ? s->reg.fd : -1;
	slot->old_epfd = older ? s->reg.epfd : -1;
	slot->old_gen = older ? s->reg.gen : 0;
	slot->prev_destroy = slot->destroy;
	slot->gen += 1;
	if (!was_live)
		slot->live_from = slot->gen;
	bool registered = slot->adder && destroyed && af_links_renewed(slot, destroyed);
	slot->adder = 0;
	slot->state = AF_SLOT_LIVE;
	slot->flags = flags | (was_live ? AF_S_REBORN_LIVE : 0) | (slot->flags & AF_S_DOUBLED);
	af_at_clear(&slot->create);
	af_at_clear(&slot->del);
	af_at_clear(&slot->close);
	af_at_clear(&slot->destroy);
	if (!registered) {
		af_at_clear(&slot->add);
		slot->fd = -1;
		slot->epfd = -1;
	}
	af_slot_counts_cleared(slot);
}

AF_FN void af_slot_waiter(struct af_slot *slot, u64 ep, u32 tid, u64 by_other)
{
	u32 waiter = af_waiter(ep);
	if (!waiter)
		return;
	slot->waiter = waiter;
	af_flag(slot, AF_S_WAITER_KNOWN | (waiter != tid ? by_other : 0));
}

/* Is this thread still within the call of destroy that freed the slot? */
AF_FN bool af_within_destroy(struct af_thread *t, u64 addr, u64 sp, u64 ip)
{
	AF_LOOP
	for (u32 i = 0; i < AF_DESTROYS; i++) {
		struct af_destroy *d = &t->destroys[i];
		if (d->addr != addr || sp > d->sp)
			continue;
		u64 ret = 0;
		if (!d->ret)
			return sp < d->sp; /* of an inlined copy nothing else is known */
		if (bpf_probe_read_user(&ret, sizeof(ret), (void *)d->sp) || ret != d->ret)
			continue; /* its frame was used again since */
		if (sp < d->sp || (ip && ip != d->ip))
			return true; /* deeper on the stack, or a tail call of another destroy */
	}
	return false;
}

/* epoll_ctl or close on a slot that was destroyed. Within the destroying call, or to end the registration before
 * anybody can be woken by it, that is how correct programs do it. */
AF_FN void af_used_after(struct af_thread *t, struct af_slot *slot, bool ends)
{
	if (slot->state != AF_SLOT_FREE)
		return;
	if (ends && (slot->flags & AF_S_PENDING))
		af_flag(slot, AF_S_ENDED_AFTER);
	if (!af_within_destroy(t, slot->addr, AF_USER(sp), 0))
		af_flag(slot, AF_S_USED_AFTER);
}
