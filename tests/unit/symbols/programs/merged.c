/* Two inlined copies of conn_destroy whose equal tails LLVM merges: their debug entries vanish, the code
   stays. Prints its ground truth as pool.c does. */
#include <stdio.h>
#include <stdlib.h>

struct conn { struct conn *next_free; int fd; };
struct pool { long count; struct conn *free; };
static struct pool the_pool;

static inline void conn_destroy(struct pool *pool, struct conn *conn) {
    conn->next_free = pool->free;
    pool->free = conn;
}
__attribute__((noinline)) void conn_disown(struct pool *pool, struct conn *conn) {
    printf("O %p\n", (void *)conn);
    printf("D %p\n", (void *)conn);
    conn_destroy(pool, conn);
}
__attribute__((noinline)) void conn_end(struct conn *conn, int how) {
    if (how & 1) {
        printf("D %p\n", (void *)conn);
        conn_destroy(&the_pool, conn);
    } else {
        conn->fd = -1;
        fprintf(stdout, "D %p\n", (void *)conn);
        conn_destroy(&the_pool, conn);
    }
}
static struct conn conns[64];
int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 10;
    for (int i = 0; i < n; i++)
        if (i % 3) conn_end(&conns[i], i);
        else conn_disown(&the_pool, &conns[i]);
    return 0;
}
