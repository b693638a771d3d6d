// CORRECT: slots are entries of a table; conn_init() registers one, conn_fini() removes it, the caller closes
#define NOPOOL
#include "conns.h"
NI void conn_init(struct conn *c) {
    c->gen++;
    pairup(c);
    add(c->fd, EPOLLIN, c);
}
NI void conn_fini(struct conn *c) {
    del(c->fd);
    memset(c->buf, 0x5a, sizeof c->buf);
    asm volatile("" ::: "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    static struct conn table[8];
    int n = 0, stale = 0;
    for (int i = 0; i < 40; i++) {
        struct conn *c = &table[i % 8];
        conn_init(c);
        poke(c->peer);
        n += deliveries_of(c, 50);
        conn_fini(c);
        stale += deliveries_of(c, 0);
        close(c->fd);
        close(c->peer);
    }
    say("correct; events %d, after the end %d", n, stale);
    hold();
}
