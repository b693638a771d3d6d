// CORRECT: ADD says EEXIST because the descriptor is registered for another slot; the program changes it with
// MOD
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, exists = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *old = open_conn(EPOLLIN), *c = conn_create();
        c->fd = old->fd;
        c->peer = old->peer;
        if (ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c) && errno == EEXIST) {
            exists++;
            ctl(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
        }
        conn_destroy(old);
        poke(c->peer);
        n += deliveries_of(c, 50);
        end_conn(c);
    }
    say("correct; events %d, EEXIST %d", n, exists);
    hold();
}
