// See cserver_truth.h. One lock; times are CLOCK_MONOTONIC ns, 0 is never.
#define _GNU_SOURCE
#include "cserver_truth.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MAX_LIVES = 1 << 20, MAX_BATCH = 256, MAX_PARTIAL = 3 };
#define NO_LIFE UINT32_MAX

struct life {
    uint32_t slot, generation;
    int fd, dup_fd;
    uint64_t create_ns, add_ns, del_ns, dup_ns, close_enter_ns, close_exit_ns, destroy_ns, first_stale_ns;
    pid_t create_tid, close_tid, destroy_tid;
    uint32_t destroys, bad_closes, failed_removals, deliveries, stale_deliveries, stale_dispatches;
    uint32_t recycled_ambiguous, after_close, after_close_possible;
    bool dup_open, registered, closed, aliased, freed_while_registered, freed_in_batch, implicit_on_worker;
    bool implicit_on_loop, description_outlives_close, close_in_batch, close_in_batch_possible;
};

static struct {
    pthread_mutex_t lock;
    FILE *file;
    bool on, all, survive, batch_open;
    uintptr_t base;
    size_t size;
    unsigned count, partial;
    pid_t loop_tid;
    struct life *lives;
    uint32_t len;
    uint32_t *latest;   // by slot number
    uint32_t *orphans;  // by slot number: lives that were destroyed while registered, and still are
    uint64_t overflow, batches, deliveries, failed_setups, wait_enter_ns, batch_number;
    int batch_len;
    uint32_t batch[MAX_BATCH];
    bool dispatched[MAX_BATCH];
} t = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void *reserve(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("cserver: truth");
        exit(2);
    }
    return p;
}

void truth_open(const char *path, bool all, bool survive, const void *base, size_t size, unsigned count) {
    if (path == NULL && !survive) return;
    if (path != NULL) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0 || (t.file = fdopen(fd, "w")) == NULL) {
            perror(path);
            exit(2);
        }
    }
    t.on = true, t.all = all, t.survive = survive;
    t.base = (uintptr_t)base, t.size = size, t.count = count;
    t.loop_tid = gettid();
    t.lives = reserve(MAX_LIVES * sizeof *t.lives);
    t.latest = reserve(count * sizeof *t.latest);
    t.orphans = reserve(count * sizeof *t.orphans);
    for (unsigned i = 0; i < count; i++) t.latest[i] = NO_LIFE;
}

static unsigned number_of(const void *slot) { return (unsigned)(((uintptr_t)slot - t.base) / t.size); }

static struct life *life_of(const void *slot) {
    uint32_t index = t.latest[number_of(slot)];
    return index == NO_LIFE ? NULL : &t.lives[index];
}

static unsigned long long address_of(const struct life *l) { return t.base + (uint64_t)l->slot * t.size; }

static bool in_batch(uint32_t life) {
    if (!t.batch_open) return false;
    for (int i = 0; i < t.batch_len; i++)
        if (t.batch[i] == life) return true;
    return false;
}

// The kernel closes a batch when the next wait begins. Between truth_wait_begins() and that call the loop may be
// preempted, for as long as a busy machine does that.
static bool may_be_in_batch(uint32_t life, uint64_t at) {
    if (!t.batch_open && at - t.wait_enter_ns > 200000000) return false;
    for (int i = 0; i < t.batch_len; i++)
        if (t.batch[i] == life) return true;
    return false;
}

// -- the file ---------------------------------------------------------------------------------------

static bool wrong(const struct life *l) {
    return l->stale_deliveries || l->recycled_ambiguous || l->after_close_possible || l->failed_removals ||
           l->bad_closes || l->destroys > 1 || l->aliased || l->freed_while_registered || l->freed_in_batch ||
           l->implicit_on_worker || l->implicit_on_loop || l->description_outlives_close ||
           l->close_in_batch_possible || l->dup_ns;
}

static void number(const char *key, uint64_t value) {
    if (value != 0) fprintf(t.file, ",\"%s\":%llu", key, (unsigned long long)value);
}

static void flag(const char *key, bool value) {
    if (value) fprintf(t.file, ",\"%s\":true", key);
}

static void write_life(const struct life *l) {
    fprintf(t.file, "{\"life\":true,\"slot\":%llu,\"generation\":%u,\"fd\":%d", address_of(l), l->generation, l->fd);
    if (l->dup_fd >= 0) fprintf(t.file, ",\"dup_fd\":%d", l->dup_fd);
    number("create_ns", l->create_ns), number("create_tid", (uint64_t)l->create_tid);
    number("add_ns", l->add_ns), number("del_ns", l->del_ns), number("dup_ns", l->dup_ns);
    number("close_enter_ns", l->close_enter_ns), number("close_exit_ns", l->close_exit_ns);
    number("close_tid", (uint64_t)l->close_tid), number("destroy_ns", l->destroy_ns);
    number("destroy_tid", (uint64_t)l->destroy_tid), number("destroys", l->destroys);
    number("bad_closes", l->bad_closes), number("failed_removals", l->failed_removals);
    number("deliveries", l->deliveries), number("stale_deliveries", l->stale_deliveries);
    number("first_stale_ns", l->first_stale_ns), number("stale_dispatches", l->stale_dispatches);
    number("recycled_ambiguous", l->recycled_ambiguous), number("after_close", l->after_close);
    number("after_close_possible", l->after_close_possible);
    flag("registered", l->registered), flag("closed", l->closed), flag("aliased", l->aliased);
    flag("freed_while_registered", l->freed_while_registered), flag("freed_in_batch", l->freed_in_batch);
    flag("implicit_on_worker", l->implicit_on_worker), flag("implicit_on_loop", l->implicit_on_loop);
    flag("description_outlives_close", l->description_outlives_close);
    flag("close_in_batch", l->close_in_batch), flag("close_in_batch_possible", l->close_in_batch_possible);
    fputs("}\n", t.file);
}

static void write_summary(bool partial) {
    uint64_t destroyed = 0, stale = 0, dispatches = 0, doubles = 0, aliased = 0, registered = 0, batch = 0;
    uint64_t implicit = 0, outlives = 0;
    for (uint32_t i = 0; i < t.len; i++) {
        const struct life *l = &t.lives[i];
        if (wrong(l) || t.all) write_life(l);
        destroyed += l->destroys != 0, doubles += l->destroys > 1 ? l->destroys - 1 : 0;
        stale += l->stale_deliveries, dispatches += l->stale_dispatches, aliased += l->aliased;
        registered += l->freed_while_registered, batch += l->freed_in_batch;
        implicit += l->implicit_on_worker && l->destroys, outlives += l->description_outlives_close;
    }
    fprintf(t.file, "{\"summary\":true,\"partial\":%s,\"connections\":%u,\"overflow\":%llu,\"loop_tid\":%d",
            partial ? "true" : "false", t.len, (unsigned long long)t.overflow, t.loop_tid);
    fprintf(t.file, ",\"wrong_closes\":0,\"orphan_overflow\":0,\"batches\":%llu,\"deliveries\":%llu",
            (unsigned long long)t.batches, (unsigned long long)t.deliveries);
    number("failed_setups", t.failed_setups), number("destroyed", destroyed), number("stale_deliveries", stale);
    number("stale_dispatches", dispatches), number("double_destroys", doubles), number("aliased", aliased);
    number("freed_while_registered", registered), number("freed_in_batch", batch);
    number("implicit_removal", implicit), number("description_outlives_close", outlives);
    fprintf(t.file, ",\"ns\":%llu}\n", (unsigned long long)now());
    fflush(t.file);
}

// Without --survive the program is about to die of what was just noted.
static void write_partial(void) {
    if (t.file == NULL || t.survive || t.partial == MAX_PARTIAL) return;
    t.partial++;
    write_summary(true);
}

void truth_finish(void) {
    if (t.on && t.file != NULL) write_summary(false);
}

// -- what happens -----------------------------------------------------------------------------------

void truth_created(const void *slot, int fd) {
    if (!t.on) return;
    pthread_mutex_lock(&t.lock);
    struct life *before = life_of(slot);
    if (t.len == MAX_LIVES) {
        t.overflow++;
    } else {
        t.lives[t.len] = (struct life){.slot = number_of(slot),
                                       .generation = before ? before->generation + 1 : 1,
                                       .fd = fd,
                                       .dup_fd = -1,
                                       .create_ns = now(),
                                       .create_tid = gettid(),
                                       .aliased = before && before->destroys == 0};
        t.latest[number_of(slot)] = t.len++;
    }
    pthread_mutex_unlock(&t.lock);
}

// Most notes are "if somebody keeps books: lock, find the life, write, unlock".
#define NOTE(slot, l)                                                                         \
    if (!t.on) return;                                                                        \
    pthread_mutex_lock(&t.lock);                                                              \
    struct life *l = life_of(slot);                                                           \
    if (l == NULL) {                                                                          \
        pthread_mutex_unlock(&t.lock);                                                        \
        return;                                                                               \
    }

void truth_added(const void *slot, int error) {
    NOTE(slot, l)
    l->add_ns = now();
    l->registered = error == 0;
    t.failed_setups += error != 0;
    pthread_mutex_unlock(&t.lock);
}

void truth_removed(const void *slot, int error) {
    NOTE(slot, l)
    l->del_ns = now();
    if (error == 0)
        l->registered = false;
    else
        l->failed_removals++;
    pthread_mutex_unlock(&t.lock);
}

void truth_modified(const void *slot, int error) {
    NOTE(slot, l)
    l->failed_removals += error != 0;
    pthread_mutex_unlock(&t.lock);
}

void truth_dupped(const void *slot, int fd) {
    NOTE(slot, l)
    l->dup_ns = now();
    l->dup_fd = fd;
    l->dup_open = true;
    pthread_mutex_unlock(&t.lock);
}

unsigned truth_life(const void *slot) { return t.on ? t.latest[number_of(slot)] : NO_LIFE; }

void truth_dup_closing(unsigned life) {
    if (!t.on || life == NO_LIFE) return;
    pthread_mutex_lock(&t.lock);
    struct life *l = &t.lives[life];
    l->dup_open = false;
    if (l->closed && l->registered) {
        l->registered = false;
        if (l->freed_while_registered) t.orphans[l->slot]--;
    }
    pthread_mutex_unlock(&t.lock);
}

uint64_t truth_closing(const void *slot) {
    if (!t.on) return 0;
    pthread_mutex_lock(&t.lock);
    struct life *l = life_of(slot);
    l->close_enter_ns = now();
    l->close_tid = gettid();
    if (gettid() != t.loop_tid && may_be_in_batch((uint32_t)(l - t.lives), l->close_enter_ns))
        l->close_in_batch_possible = true;
    uint64_t number_now = t.batch_number;
    pthread_mutex_unlock(&t.lock);
    return number_now;
}

void truth_closed(const void *slot, int error, uint64_t batch_before) {
    NOTE(slot, l)
    bool on_loop = gettid() == t.loop_tid;
    l->close_exit_ns = now();
    l->bad_closes += error != 0;
    l->closed = error == 0;
    // close() ends the registration with the last descriptor of the description only: epoll(7), Q6.
    if (l->closed && l->registered && l->dup_open) {
        l->description_outlives_close = true;
    } else if (l->closed && l->registered) {
        l->registered = false;
        if (on_loop)
            l->implicit_on_loop = true;
        else
            l->implicit_on_worker = true;
    }
    if (!on_loop && in_batch((uint32_t)(l - t.lives))) {
        l->close_in_batch_possible = true;
        l->close_in_batch = l->close_in_batch || t.batch_number == batch_before;
    }
    pthread_mutex_unlock(&t.lock);
}

void truth_destroyed(const void *slot) {
    NOTE(slot, l)
    if (l->destroys++ > 0) {
        write_partial();
    } else {
        l->destroy_ns = now();
        l->destroy_tid = gettid();
        l->freed_while_registered = l->registered;
        t.orphans[l->slot] += l->registered;
        for (int i = 0; t.batch_open && i < t.batch_len; i++)
            if (t.batch[i] == (uint32_t)(l - t.lives) && !t.dispatched[i]) l->freed_in_batch = true;
    }
    pthread_mutex_unlock(&t.lock);
}

void truth_wait_begins(void) {
    if (!t.on) return;
    pthread_mutex_lock(&t.lock);
    t.batch_open = false;
    t.batch_number++;
    t.wait_enter_ns = now();
    pthread_mutex_unlock(&t.lock);
}

static void delivered(struct life *l) {
    uint64_t at = now();
    if (l->destroys > 0) {
        if (l->stale_deliveries++ == 0) {
            l->first_stale_ns = at;
            if (t.file != NULL) {
                fprintf(t.file, "{\"event\":\"stale_delivery\",\"slot\":%llu,\"generation\":%u,\"ns\":%llu,\"tid\":%d}\n",
                        address_of(l), l->generation, (unsigned long long)at, gettid());
                fflush(t.file);
            }
        }
        return;
    }
    l->deliveries++;
    if (l->close_enter_ns != 0) {
        // Certain only when the close was over before the wait began; otherwise only the kernel knows.
        l->after_close += l->close_exit_ns != 0 && l->close_exit_ns < t.wait_enter_ns;
        l->after_close_possible++;
        if (l->close_tid != t.loop_tid) l->close_in_batch_possible = true;
    }
    l->recycled_ambiguous += t.orphans[l->slot] > 0;
}

void truth_wait_ended(const struct epoll_event *events, int count, uint64_t reserved) {
    if (!t.on) return;
    pthread_mutex_lock(&t.lock);
    t.batches++;
    t.batch_open = true;
    t.batch_len = count;
    for (int i = 0; i < count; i++) {
        t.dispatched[i] = false;
        t.batch[i] = NO_LIFE;
        if (events[i].data.u64 < reserved) continue;
        t.deliveries++;
        t.batch[i] = t.latest[number_of(events[i].data.ptr)];
        if (t.batch[i] != NO_LIFE) delivered(&t.lives[t.batch[i]]);
    }
    pthread_mutex_unlock(&t.lock);
}

bool truth_dispatches(int index) {
    if (!t.on) return true;
    pthread_mutex_lock(&t.lock);
    t.dispatched[index] = true;
    bool there = true;
    if (t.batch[index] != NO_LIFE) {
        struct life *l = &t.lives[t.batch[index]];
        there = l->destroys == 0 && t.latest[l->slot] == t.batch[index];
        if (!there) {
            l->stale_dispatches++;
            write_partial();
        }
    }
    pthread_mutex_unlock(&t.lock);
    return there;
}
