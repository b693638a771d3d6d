// BUG (Bun #25361 shape): the object moves, the old one is destroyed, nobody MODs: events come for the old
// one
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        struct conn *d = conn_create();
        d->fd = c->fd;
        d->peer = c->peer;
        conn_destroy(c);
        struct epoll_event e[4];
        write(d->peer, "x", 1);
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++)
            if (e[j].data.ptr == c)
                stale++;
        ctl(EPOLL_CTL_DEL, d->fd, 0, 0);
        close(d->fd);
        close(d->peer);
        conn_destroy(d);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
