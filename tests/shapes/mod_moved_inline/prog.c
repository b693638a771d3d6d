// CORRECT: as mod_moved, but create and destroy are inlined at -O2, each at several places
#define NOPOOL
#include "conns.h"
static struct conn pool[64], *unused;
static int used;
static inline struct conn *conn_create(void) {
    struct conn *c = unused;
    if (c)
        unused = c->next;
    else
        c = &pool[used++];
    c->next = 0;
    c->gen++;
    return c;
}
static inline void conn_destroy(struct conn *c) {
    c->fd = -1;
    c->next = unused;
    unused = c;
}
NI static struct conn *grow(struct conn *c) {
    struct conn *d = conn_create();
    d->fd = c->fd;
    d->peer = c->peer;
    if (ctl(EPOLL_CTL_MOD, d->fd, EPOLLIN, d))
        abort();
    conn_destroy(c);
    return d;
}
NI static void finish(struct conn *c) {
    del(c->fd);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 30; i++) {
        struct conn *c = conn_create();
        pairup(c);
        add(c->fd, EPOLLIN, c);
        for (int j = 0; j < 3; j++) {
            c = grow(c);
            poke(c->peer);
            n += deliveries_of(c, 50);
            take(c->fd);
        }
        finish(c);
    }
    say("correct; events to the new one %d", n);
    hold();
}
