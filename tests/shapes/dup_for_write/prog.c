// CORRECT: reading and writing are registered apart, the second under a duplicate of the descriptor (libev, Go's old
// poller), both for the same slot; its end closes the two and gives the slot back before the only thread waits again
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = open_conn(EPOLLIN);
        c->up = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
        add(c->up, EPOLLOUT | EPOLLONESHOT, c);
        poke(c->peer);
        n += deliveries_of(c, 50);
        take(c->fd);
        write(c->up, "y", 1);
        close(c->fd);
        close(c->up);
        close(c->peer);
        conn_destroy(c);
        struct epoll_event e[4];
        if (wait_ms(5, e, 4))
            abort();
    }
    say("correct; events %d", n);
    hold();
}
