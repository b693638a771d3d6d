// BUG: EPOLLOUT stays set although there is nothing to write
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    long n = 0;
    struct conn *c = conn_create();
    pairup(c);
    add(c->fd, EPOLLOUT, c);
    for (double end = seconds() + 3; seconds() < end;) {
        struct epoll_event e[8];
        int k = wait_ms(50, e, 8);
        for (int j = 0; j < k; j++, n++) {
            asm volatile("");
        }
    }
    end_conn(c);
    say("bug; events %ld", n);
    hold();
}
