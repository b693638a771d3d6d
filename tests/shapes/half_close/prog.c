// CORRECT: the peer closes its half; what was queued is still written over seconds, then removed, closed,
// destroyed
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    struct conn *c[10];
    for (int i = 0; i < 10; i++) {
        c[i] = open_conn(EPOLLIN | EPOLLRDHUP);
        shutdown(c[i]->peer, SHUT_WR);
    }
    struct epoll_event e[16];
    int k = wait_ms(50, e, 16);
    for (int j = 0; j < k; j++, n++) {
        struct conn *d = e[j].data.ptr;
        char b;
        if (read(d->fd, &b, 1) == 0)
            ctl(EPOLL_CTL_MOD, d->fd, EPOLLOUT | EPOLLONESHOT, d);
    }
    for (int r = 0; r < 20; r++) {
        k = wait_ms(100, e, 16);
        for (int j = 0; j < k; j++, n++) {
            struct conn *d = e[j].data.ptr;
            poke(d->fd);
            take(d->peer);
        }
        usleep(100000);
        for (int i = 0; i < 10; i++)
            ctl(EPOLL_CTL_MOD, c[i]->fd, EPOLLOUT | EPOLLONESHOT, c[i]);
    }
    for (int i = 0; i < 10; i++)
        end_conn(c[i]);
    say("correct; events %d", n);
    hold();
}
