// BUG: closed without DEL while a duplicate lives on: from then on nobody can remove it by that number. The
// duplicate goes before the slot is destroyed
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int junk = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int copy = fcntl(c->fd, F_DUPFD_CLOEXEC, 50);
        close(c->fd);
        poke(c->peer);
        junk += deliveries_of(c, 50);
        close(copy);
        close(c->peer);
        conn_destroy(c);
    }
    say("bug; events after the close %d", junk);
    hold();
}
