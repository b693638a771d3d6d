// CORRECT: an upstream object reconnects (close, socket) and gets its number again; before it registers the new socket
// it removes what may be registered, to be sure (ENOENT), then ADDs; one thread
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = open_conn(EPOLLIN);
    int n = 0, nothing = 0;
    for (int r = 0; r < 20; r++) {
        poke(c->peer);
        n += deliveries_of(c, 50);
        take(c->fd);
        close(c->fd);
        close(c->peer);
        pairup(c);
        nothing += ctl(EPOLL_CTL_DEL, c->fd, 0, 0) && errno == ENOENT;
        add(c->fd, EPOLLIN, c);
    }
    end_conn(c);
    say("correct; events %d, nothing to remove %d", n, nothing);
    hold();
}
