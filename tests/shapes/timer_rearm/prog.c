// CORRECT: a level-triggered timerfd is answered by timerfd_settime(), which resets it, and never read
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = conn_create();
    c->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    add(c->fd, EPOLLIN, c);
    struct itimerspec soon = {.it_value.tv_nsec = 20000};
    timerfd_settime(c->fd, 0, &soon, 0);
    int n = 0;
    while (n < 20000) {
        n += deliveries_of(c, 100);
        timerfd_settime(c->fd, 0, &soon, 0);
    }
    del(c->fd);
    close(c->fd);
    conn_destroy(c);
    say("correct; expired %d times", n);
    hold();
}
