// BUG: a timer object is destroyed while its timerfd is armed, open and registered; it expires later
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
        c->fd = fd;
        add(fd, EPOLLIN, c);
        struct itimerspec soon = {.it_value.tv_nsec = 20000000};
        timerfd_settime(fd, 0, &soon, 0);
        conn_destroy(c);
        stale += deliveries_of(c, 100);
        close(fd);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
