// BUG: one-shot; the handler finds nothing to do with the event and re-arms the registration, without reading: it is
// delivered again at once, for ever
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = open_conn(EPOLLIN | EPOLLONESHOT);
    poke(c->peer);
    long n = 0;
    for (double end = seconds() + 8; seconds() < end;) {
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        for (int i = 0; i < k; i++, n++)
            ctl(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLONESHOT, c);
    }
    end_conn(c);
    say("bug; events %ld", n);
    hold();
}
