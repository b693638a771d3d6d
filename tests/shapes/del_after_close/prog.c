// BUG: DEL comes after the close: EBADF; in a threaded program it would hit somebody else's descriptor
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int failed = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = open_conn(EPOLLIN);
        close(c->fd);
        failed += ctl(EPOLL_CTL_DEL, c->fd, 0, 0) && errno == EBADF;
        close(c->peer);
        conn_destroy(c);
    }
    say("bug; EBADF %d", failed);
    hold();
}
