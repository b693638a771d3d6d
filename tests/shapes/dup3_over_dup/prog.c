// BUG: dup3() puts another file over a registered descriptor, but a duplicate keeps its description, so that
// the registration stays; the slot is destroyed
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 6; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int fd = c->fd, peer = c->peer, copy = dup(fd);
        dup3(null, fd, O_CLOEXEC);
        conn_destroy(c);
        poke(peer);
        stale += deliveries_of(c, 50);
        close(copy);
        close(fd);
        close(peer);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
