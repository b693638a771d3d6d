/* create and destroy that stay functions, which optimizers clone: with constants put in, parameters
   taken apart, the rare part split off (.constprop, .isra, .part, .cold), and called in tail position. */
#include <stdio.h>
#include <stdlib.h>
#include "truth.h"

struct session { struct session *next; int state; };
struct conn { struct conn *next; struct session *session; int fd; unsigned flags; };
struct pool { struct conn *free; long live; long destroyed; };
static struct pool pool;
static long audit[16];

__attribute__((cold, noinline)) static void complain(int why) {
    audit[why & 15]++;
    if (audit[why & 15] == 1000000) puts("never");
}
__attribute__((noinline)) static struct conn *pool_create(struct pool *p, int zero) {
    struct conn *slot = p->free;
    if (__builtin_expect(slot != NULL, 1)) p->free = slot->next;
    else {
        slot = malloc(sizeof *slot);
        if (!slot) {
            complain(1);
            return NULL;
        }
    }
    if (zero) slot->flags = 0;
    p->live++;
    return slot;
}
/* Always the same mode: constant propagation; an early way out: partial inlining; a cold part. */
#ifdef PART
static void pool_destroy(struct pool *p, struct conn *slot, int mode) {
#else
__attribute__((noinline)) static void pool_destroy(struct pool *p, struct conn *slot, int mode) {
#endif
    if (!slot->fd) return;
    if (__builtin_expect(slot->flags > 1000, 0)) complain(mode);
    for (int i = 0; i < mode; i++) audit[i] += slot->fd;
    if (slot->session) {
        slot->session->state = -1;
        audit[3] += slot->session->state;
        if (__builtin_expect(audit[3] == 99, 0)) complain(3);
    }
    slot->fd = 0;
    slot->next = p->free;
    p->free = slot;
    p->live--;
    p->destroyed++;
}
__attribute__((noinline)) static unsigned session_state(const struct session *s) {
    return s->state;
}
__attribute__((noinline)) static void conn_disown(struct pool *p, struct conn *conn) {
    conn->session = NULL;
    note('D', conn);
    pool_destroy(p, conn, 3); /* a tail call */
}
__attribute__((noinline)) void finish(struct conn *c) {
    note('D', c);
    pool_destroy(&pool, c, 3);
    complain(5);
}
__attribute__((noinline)) void finish_tail(struct conn *c) {
    note('D', c);
    pool_destroy(&pool, c, 3);
}
__attribute__((noinline)) void finish_both(struct conn *a, struct conn *b) {
    note('D', a);
    pool_destroy(&pool, a, 3);
    note('D', b);
    pool_destroy(&pool, b, 3);
}
int main(void) {
    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    struct session session = {0};
    unsigned sum = 0;
    struct conn *last = NULL;
    for (int i = 1; i < 33; i++) {
        struct conn *c = pool_create(&pool, 1);
        if (!c) return 1;
        note('C', c);
        c->session = &session;
        c->fd = i;
        session.state = i;
        note('S', &session);
        sum += session_state(&session);
        if (i % 4 == 0) finish(c);
        else if (i % 4 == 1) finish_tail(c);
        else if (i % 4 == 2) {
            note('O', c);
            conn_disown(&pool, c);
        } else if (last) {
            finish_both(last, c);
            last = NULL;
        } else last = c;
    }
    printf("sum %u %ld %ld\n", sum, pool.live, audit[0]);
    return 0;
}
