// BUG: each connection is closed twice; the second says EBADF
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int failed = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = open_conn(EPOLLIN);
        del(c->fd);
        close(c->fd);
        failed += close(c->fd) && errno == EBADF;
        close(c->peer);
        conn_destroy(c);
    }
    say("bug; EBADF %d", failed);
    hold();
}
