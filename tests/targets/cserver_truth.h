// What really happened to every (slot, generation), as cserver sees it from inside: the truth file of
// README.md, in the same keys. Decides nothing except which deliveries --survive skips. Never touches a slot.
#ifndef CSERVER_TRUTH_H
#define CSERVER_TRUTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>

// `slots` are `count` objects of `size` bytes from `base` on. Called on the loop thread.
void truth_open(const char *path, bool all, bool survive, const void *base, size_t size, unsigned count);
void truth_created(const void *slot, int fd);
void truth_added(const void *slot, int error);
void truth_removed(const void *slot, int error);
void truth_modified(const void *slot, int error);
void truth_dupped(const void *slot, int fd);
unsigned truth_life(const void *slot);
void truth_dup_closing(unsigned life);
uint64_t truth_closing(const void *slot);
void truth_closed(const void *slot, int error, uint64_t batch_before);
void truth_destroyed(const void *slot);
void truth_wait_begins(void);
void truth_wait_ended(const struct epoll_event *events, int count, uint64_t reserved);
// Whether delivery number `index` of this batch still has the slot it was made for.
bool truth_dispatches(int index);
void truth_finish(void);

#endif
