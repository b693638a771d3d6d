// BUG: the only thread destroys a registered slot and never waits again: it goes on with other work for
// seconds
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = open_conn(EPOLLIN);
    poke(c->peer);
    int n = deliveries_of(c, 50);
    take(c->fd);
    conn_destroy(c);
    for (int i = 0; i < 300; i++) {
        int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        close(fd);
        usleep(10000);
    }
    say("bug; freed while registered 1, events before it %d", n);
    hold();
}
