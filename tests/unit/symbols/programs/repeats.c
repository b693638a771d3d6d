/* dispatch, which only reads, in loops that optimizers unroll: of one session again and again, of others,
   of one that is reached through memory. Copies of one instance follow each other. */
#include <stdio.h>
#include <stdlib.h>
#include "truth.h"

struct session { struct session *next; int state; };
struct conn { struct conn *next; struct session *session; };
struct pool { struct conn *free; };
static struct pool pool;
static volatile int sink;

__attribute__((noinline)) static void pool_destroy(struct pool *p, struct conn *slot) {
    slot->next = p->free;
    p->free = slot;
    __asm__ volatile("" ::: "memory");
}
static inline int session_state(const struct session *s) { return s->state; }
__attribute__((noinline)) void same(struct session *session) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        note('S', session);
        sink = session_state(session);
    }
}
__attribute__((noinline)) void through(struct conn *c) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        note('S', c->session);
        sink = session_state(c->session);
    }
}
__attribute__((noinline)) void each(struct conn *list, int count) {
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) {
        note('S', list[i].session);
        sink = session_state(list[i].session);
    }
}
__attribute__((noinline)) void four(struct session **list) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        note('S', list[i]);
        sink = session_state(list[i]);
    }
}
__attribute__((noinline)) void chain(struct session *s) {
#pragma GCC unroll 3
    while (s) {
        note('S', s);
        sink = session_state(s);
        s = s->next;
    }
}
int main(void) {
    struct session sessions[7] = {{0}};
    struct session *list[7];
    struct conn conns[7] = {{0}};
    for (int i = 0; i < 7; i++) {
        sessions[i].state = i;
        sessions[i].next = i ? &sessions[i - 1] : NULL;
        conns[i].session = list[i] = &sessions[i];
    }
    same(&sessions[2]);
    through(&conns[3]);
    each(conns, 7);
    four(list);
    chain(&sessions[6]);
    note('D', &conns[0]);
    pool_destroy(&pool, &conns[0]);
    printf("sum %d\n", sink);
    return 0;
}
