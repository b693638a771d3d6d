// CORRECT: a daemon closes all numbers that it does not need up to its limit before it begins, as daemon() of old does
#include "conns.h"
int main(void) {
    ready();
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    EP = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < 20; i++) {
        struct conn *c = open_conn(EPOLLIN);
        poke(c->peer);
        deliveries_of(c, 100);
        end_conn(c);
    }
    say("correct");
    hold();
}
