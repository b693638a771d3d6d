/* create and destroy inlined through several levels: in loops, branches, a switch, cold paths, tail
   positions, in a recursion; two pools of the type, and elsewhere one of another type. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "levels.h"
#include "truth.h"

struct conn { struct conn *next; struct session *session; struct conn *sibling; int fd; unsigned flags; };
struct pool { long live; struct conn *free; long limit; };
struct server { struct pool pool; struct conn *kept[8]; };
static struct pool front = {.limit = 24};
static struct server *back;

static inline struct conn *pool_create(struct pool *pool) {
    struct conn *slot = pool->free;
    if (slot) pool->free = slot->next;
    else {
        if (pool->live >= pool->limit) return NULL;
        slot = malloc(sizeof *slot);
        if (!slot) return NULL;
    }
    memset(slot, 0, sizeof *slot);
    pool->live++;
    return slot;
}
static inline void pool_destroy(struct pool *pool, struct conn *slot) {
    memset(slot, 0xaa, sizeof *slot);
    slot->next = pool->free;
    pool->free = slot;
    pool->live--;
}

static inline unsigned session_state(const struct session *s) { return s->state; }
static inline struct conn *open_conn(struct pool *pool, int fd) {
    struct conn *c = pool_create(pool);
    if (!c) return NULL;
    note('C', c);
    c->fd = fd;
    c->flags = fd % 7;
    c->session = session_open(fd);
    return c;
}
static inline void release(struct pool *pool, struct conn *c) {
    if (c->session) session_close(c->session);
    note('D', c);
    pool_destroy(pool, c);
}
static inline void drop(struct pool *pool, struct conn *c) {
    if (c->flags & 1) c->fd = -1;
    release(pool, c);
}
__attribute__((noinline)) void conn_disown(struct pool *pool, struct conn *conn) {
    session_close(conn->session);
    note('D', conn);
    pool_destroy(pool, conn); /* in tail position */
}
__attribute__((noinline)) unsigned dispatch(struct conn *c) {
    if (!c->session) return 7;
    note('S', c->session);
    return session_state(c->session) + 1;
}
__attribute__((cold, noinline)) void complain(struct conn *c) {
    if (c->fd == 12345) puts("never");
}
/* The failing way is cold: it may be moved to another section. */
__attribute__((noinline)) struct conn *accept_one(struct pool *pool, int fd) {
    struct conn *c = open_conn(pool, fd);
    if (!c) return NULL;
    if (__builtin_expect(fd % 11 == 10, 0)) {
        complain(c);
        release(pool, c);
        return NULL;
    }
    return c;
}
/* Several ways to the end, some of them alike: tails may be merged. */
__attribute__((noinline)) void finish(struct pool *pool, struct conn *c, int how) {
    switch (how) {
    case 0: drop(pool, c); break;
    case 1: c->fd = -2; drop(pool, c); break;
    case 2: complain(c); release(pool, c); break;
    case 3: note('O', c); conn_disown(pool, c); break;
    case 4: session_close(c->session); c->session = NULL; drop(pool, c); break;
    case 5: if (c->flags & 2) { release(pool, c); } else { c->flags = 0; release(pool, c); } break;
    default: note('D', c); pool_destroy(pool, c);
    }
}
__attribute__((noinline)) void finish_pair(struct pool *pool, struct conn *a, struct conn *b) {
    drop(pool, a);
    if (b) drop(pool, b);
}
__attribute__((noinline)) void finish_all(struct server *server) {
    for (int i = 0; i < 8; i++)
        if (server->kept[i]) {
            note('D', server->kept[i]);
            pool_destroy(&server->pool, server->kept[i]);
            server->kept[i] = NULL;
        }
}
__attribute__((noinline)) void finish_chain(struct conn *c) {
    while (c) {
        struct conn *sibling = c->sibling;
        release(&front, c);
        c = sibling;
    }
}
__attribute__((noinline)) void finish_nested(struct conn *c, int depth) {
    struct conn *sibling = c->sibling;
    if (sibling && depth) finish_nested(sibling, depth - 1);
    drop(&front, c);
}
/* Unconditional, in loops that optimizers unroll and peel: copies of one instance follow each other. */
__attribute__((noinline)) void finish_array(struct conn **list, int count) {
    for (int i = 0; i < count; i++) {
        note('D', list[i]);
        pool_destroy(&front, list[i]);
    }
}
__attribute__((noinline)) void finish_four(struct conn **list) {
    for (int i = 0; i < 4; i++) {
        note('D', list[i]);
        pool_destroy(&front, list[i]);
    }
}
__attribute__((noinline)) void finish_siblings(struct conn *c) {
    do {
        struct conn *sibling = c->sibling;
        note('D', c);
        pool_destroy(&front, c);
        c = sibling;
    } while (c);
}
static struct conn *chain(int from, int count) {
    struct conn *head = NULL;
    for (int i = 0; i < count; i++) {
        struct conn *c = accept_one(&front, from + i);
        if (!c) continue;
        c->sibling = head;
        head = c;
    }
    return head;
}
int main(void) {
    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    unsigned sum = 0;
    back = calloc(1, sizeof *back);
    back->pool.limit = 8;
    for (int i = 0; i < 42; i++) {
        struct conn *c = accept_one(&front, i);
        if (!c) continue;
        sum += dispatch(c);
        finish(&front, c, i % 7);
    }
    for (int i = 0; i < 5; i++)
        finish_pair(&front, accept_one(&front, 2 * i), accept_one(&front, 2 * i + 1));
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 10; i++) {
            struct conn *c = open_conn(&back->pool, i); /* the last two fail: the pool is full */
            if (c) back->kept[i] = c;
        }
        finish_all(back);
    }
    struct conn *head = chain(0, 5);
    if (head) finish_chain(head);
    head = chain(11, 6);
    if (head) finish_nested(head, 9);
    for (int count = 4; count < 10; count++) {
        struct conn *list[10];
        for (int i = 0; i < count; i++) {
            list[i] = pool_create(&front);
            note('C', list[i]);
        }
        finish_array(list, count);
    }
    for (int round = 0; round < 3; round++) {
        struct conn *list[4];
        for (int i = 0; i < 4; i++) {
            list[i] = pool_create(&front);
            note('C', list[i]);
            list[i]->sibling = i ? list[i - 1] : NULL;
        }
        if (round) finish_four(list);
        else finish_siblings(list[3]);
    }
    printf("sum %u %ld %ld\n", sum, front.live, back->pool.live);
    return 0;
}
