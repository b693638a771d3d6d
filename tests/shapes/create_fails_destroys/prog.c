// CORRECT: conn_create() takes memory, cannot connect, gives the memory back by conn_destroy() and returns null
#define NOPOOL
#include "conns.h"
NI void conn_destroy(struct conn *c) {
    if (c->fd >= 0)
        close(c->fd);
    if (c->peer >= 0)
        close(c->peer);
    free(c);
}
static int refuse;
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    c->fd = c->peer = -1;
    if (refuse) {
        conn_destroy(c);
        return 0;
    }
    pairup(c);
    asm volatile("" : "+r"(c));
    return c;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, failed = 0;
    for (int i = 0; i < 30; i++) {
        refuse = i % 3 == 2;
        struct conn *c = conn_create();
        if (!c) {
            failed++;
            continue;
        }
        add(c->fd, EPOLLIN, c);
        poke(c->peer);
        n += deliveries_of(c, 50);
        del(c->fd);
        conn_destroy(c);
    }
    say("correct; events %d, creates that failed %d", n, failed);
    hold();
}
