// BUG: the peer has gone; read() returns 0 for ever, and nobody closes
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    long n = 0;
    struct conn *c = conn_create();
    pairup(c);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    shutdown(c->peer, SHUT_WR);
    add(c->fd, EPOLLIN, c);
    for (double end = seconds() + 3; seconds() < end;) {
        struct epoll_event e[8];
        int k = wait_ms(50, e, 8);
        for (int j = 0; j < k; j++, n++) {
            char b[64];
            read(c->fd, b, sizeof b);
        }
    }
    end_conn(c);
    say("bug; events %ld", n);
    hold();
}
