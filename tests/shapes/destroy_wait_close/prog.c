// BUG: destroyed, then a wait that happens to bring nothing, then closed
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int later = 0;
    for (int i = 0; i < 10; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int fd = c->fd, peer = c->peer;
        conn_destroy(c);
        struct epoll_event e[4];
        later += wait_ms(0, e, 4);
        close(fd);
        close(peer);
    }
    say("bug; freed while registered 10, events %d", later);
    hold();
}
