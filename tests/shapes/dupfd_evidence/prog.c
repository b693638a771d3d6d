// BUG: keep_a_copy() duplicates the descriptor with F_DUPFD; then it is closed without DEL and the slot
// destroyed
#include "conns.h"
NI static int keep_a_copy(int fd) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 100);
    if (copy < 0)
        abort();
    return copy;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int peer = c->peer, copy = keep_a_copy(c->fd);
        close(c->fd);
        conn_destroy(c);
        poke(peer);
        stale += deliveries_of(c, 50);
        close(copy);
        close(peer);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
