/* A pool with an intrusive free list. Prints its own ground truth: what was created, destroyed,
   disowned (C, D, O) and dispatched (S), with addresses, in order. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct session { int fd; char pad[12]; unsigned state; };
struct conn {
    union { struct conn *next_free; struct session *session; } u;
    int fd;
    unsigned flags;
    struct conn *prev;
};
struct pool { long count; struct conn *free; };
static struct pool the_pool;

static struct conn *conn_create(struct pool *pool) {
    struct conn *c = pool->free;
    if (c) pool->free = c->u.next_free;
    else c = malloc(sizeof *c);
    if (!c) return NULL;
    memset(c, 0, sizeof *c);
    pool->count++;
    return c;
}
static inline void conn_destroy(struct pool *pool, struct conn *conn) {
    memset(conn, 0xaa, sizeof *conn);
    conn->u.next_free = pool->free;
    pool->free = conn;
    pool->count--;
}
__attribute__((noinline)) void conn_disown(struct pool *pool, struct conn *conn) {
    free(conn->u.session);
    conn_destroy(pool, conn);
}
static inline unsigned session_state(const struct session *s) { return s->state; }
__attribute__((noinline)) unsigned dispatch(struct conn *c) {
    if (c->flags & 4) return 7;
    return session_state(c->u.session) + 1;
}
int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 10;
    struct conn *kept[8] = {0};
    unsigned sum = 0;
    for (int i = 0; i < n; i++) {
        struct conn *c = conn_create(&the_pool);
        if (!c) return 1;
        printf("C %p\n", (void *)c);
        c->u.session = calloc(1, sizeof(struct session));
        c->u.session->state = i;
        c->flags = i % 5;
        if (!(c->flags & 4)) printf("S %p\n", (void *)c->u.session);
        sum += dispatch(c);
        int slot = i % 8;
        if (kept[slot]) {
            if (i % 3) {
                printf("O %p\n", (void *)kept[slot]);
                printf("D %p\n", (void *)kept[slot]);
                conn_disown(&the_pool, kept[slot]);
            } else {
                free(kept[slot]->u.session);
                printf("D %p\n", (void *)kept[slot]);
                conn_destroy(&the_pool, kept[slot]);
            }
        }
        kept[slot] = c;
    }
    printf("sum %u %ld\n", sum, the_pool.count);
    return 0;
}
