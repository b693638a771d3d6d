// BUG: 300 readable connections that nobody reads, level-triggered; epoll_wait takes 128 at a time, so that
// they rotate
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    long n = 0;
    for (int i = 0; i < 300; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        if (write(c->peer, "x", 1) != 1)
            abort();
    }
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    do {
        struct epoll_event e[128];
        n += wait_ms(100, e, 128);
        clock_gettime(CLOCK_MONOTONIC, &b);
    } while (b.tv_sec - a.tv_sec < 8);
    say("bug; 300 spin, events %ld", n);
    hold();
}
