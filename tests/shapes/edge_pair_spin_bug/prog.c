// BUG: a session's client is edge-triggered, its upstream level-triggered; upstream has data that nobody reads: it is
// delivered in every round, for ever
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = conn_create();
    makepair(&c->up, &c->uppeer);
    add(c->up, EPOLLIN, c);
    pairup(c);
    add(c->fd, EPOLLIN | EPOLLET, c);
    poke(c->uppeer);
    long n = 0;
    for (double end = seconds() + 8; seconds() < end;) {
        struct epoll_event e[4];
        n += wait_ms(100, e, 4);
    }
    del(c->up);
    close(c->up);
    close(c->uppeer);
    end_conn(c);
    say("bug; events %ld", n);
    hold();
}
