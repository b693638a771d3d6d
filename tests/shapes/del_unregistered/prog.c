// CORRECT: the clean-up removes whatever there is, also descriptors that were never registered (ENOENT): a
// harmless idiom
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, none = 0;
    for (int i = 0; i < 40; i++) {
        struct conn *c = conn_create();
        pairup(c);
        if (i & 1) {
            add(c->fd, EPOLLIN, c);
            poke(c->peer);
            n += deliveries_of(c, 50);
        }
        if (ctl(EPOLL_CTL_DEL, c->fd, 0, 0))
            none += errno == ENOENT;
        none += ctl(EPOLL_CTL_DEL, c->peer, 0, 0) && errno == ENOENT;
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    say("correct; events %d, ENOENT %d", n, none);
    hold();
}
