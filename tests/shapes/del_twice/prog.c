// CORRECT: conn_stop() removes the registration; the clean-up removes it once more to be sure (ENOENT, ignored), while
// the descriptor is still open and its own
#include "conns.h"
NI void conn_stop(struct conn *c) {
    ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 40; i++) {
        struct conn *c = open_conn(EPOLLIN);
        poke(c->peer);
        deliveries_of(c, 100);
        conn_stop(c);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    say("correct");
    hold();
}
