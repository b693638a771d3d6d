// BUG: DEL is called with a duplicate's number, under which nothing is registered (ENOENT); the first number
// stays registered and open, the slot is destroyed
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int failed = 0, stale = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int fd = c->fd, peer = c->peer, copy = dup(fd);
        failed += ctl(EPOLL_CTL_DEL, copy, 0, 0) && errno == ENOENT;
        close(copy);
        conn_destroy(c);
        usleep(20000);
        poke(peer);
        stale += deliveries_of(c, 50);
        close(fd);
        close(peer);
    }
    say("bug; ENOENT %d, stale %d", failed, stale);
    hold();
}
