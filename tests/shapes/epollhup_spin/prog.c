// BUG (cups #4605, bun #37928 shape): half-closed connection: events=0 but EPOLLHUP comes in every batch,
// nothing reads
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    struct conn *c = conn_create();
    pairup(c);
    ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
    close(c->peer);
    ctl(EPOLL_CTL_MOD, c->fd, 0, c);
    for (int i = 0; i < 20000; i++) {
        struct epoll_event e[4];
        n += wait_ms(50, e, 4);
    }
    ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
    close(c->fd);
    conn_destroy(c);
    say("bug; spun %d times", n);
    hold();
}
