// CORRECT: heartbeats are datagrams without contents: each event is answered by recvfrom(), which returns 0
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = conn_create();
    int s[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, s))
        abort();
    c->fd = s[0];
    add(c->fd, EPOLLIN, c);
    int n = 0;
    char b;
    for (double end = seconds() + 8; seconds() < end; n++) {
        if (send(s[1], "", 0, 0))
            abort();
        if (deliveries_of(c, 100) != 1 || recvfrom(c->fd, &b, 1, MSG_DONTWAIT, 0, 0))
            abort();
        usleep(300);
    }
    del(c->fd);
    close(c->fd);
    conn_destroy(c);
    say("correct; events %d", n);
    hold();
}
