// CORRECT: one thread, two instances; the connection is given back, the other instance is waited on (a synchronous name
// look-up), then the connection's descriptor is closed, before the thread waits where it is registered
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int dns = epoll_create1(EPOLL_CLOEXEC), q, answer;
    makepair(&q, &answer);
    struct epoll_event a = {.events = EPOLLIN, .data.ptr = 0}, e[4];
    epoll_ctl(dns, EPOLL_CTL_ADD, q, &a);
    ready();
    for (int i = 0; i < 30; i++) {
        struct conn *c = open_conn(EPOLLIN);
        poke(c->peer);
        deliveries_of(c, 100);
        int fd = c->fd, peer = c->peer;
        conn_destroy(c);
        poke(answer);
        epoll_wait(dns, e, 4, 100);
        take(q);
        close(fd);
        close(peer);
    }
    say("correct");
    hold();
}
