// CORRECT (Bun us_poll_resize shape): the object moves: new slot, MOD to the new pointer, old one destroyed
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        struct conn *d = conn_create();
        d->fd = c->fd;
        d->peer = c->peer;
        ctl(EPOLL_CTL_MOD, d->fd, EPOLLIN, d);
        conn_destroy(c);
        struct epoll_event e[4];
        write(d->peer, "x", 1);
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++)
            if (e[j].data.ptr == d)
                n++;
        ctl(EPOLL_CTL_DEL, d->fd, 0, 0);
        close(d->fd);
        close(d->peer);
        conn_destroy(d);
    }
    say("correct; events to the new one %d", n);
    hold();
}
