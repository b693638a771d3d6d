// CORRECT: eight events in a batch, each handler ends its own object; the profile has no dispatch
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 50; i++) {
        for (int j = 0; j < 8; j++)
            poke(open_conn(EPOLLIN)->peer);
        struct epoll_event e[16];
        int k = wait_ms(50, e, 16);
        for (int j = 0; j < k; j++, n++) {
            struct conn *c = e[j].data.ptr;
            take(c->fd);
            end_conn(c);
        }
    }
    say("correct; events %d", n);
    hold();
}
