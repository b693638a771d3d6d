// BUG: the handler only looks (MSG_PEEK) for the end of a line that never comes
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    long n = 0;
    struct conn *c = conn_create();
    pairup(c);
    add(c->fd, EPOLLIN, c);
    poke(c->peer);
    for (double end = seconds() + 3; seconds() < end;) {
        struct epoll_event e[8];
        int k = wait_ms(50, e, 8);
        for (int j = 0; j < k; j++, n++) {
            char b[64];
            recv(c->fd, b, sizeof b, MSG_PEEK | MSG_DONTWAIT);
        }
    }
    end_conn(c);
    say("bug; events %ld", n);
    hold();
}
