// BUG: an ADD fails (EPERM: the file cannot be watched); whoever tried cleans up, and so does its caller: the
// connection is destroyed twice and its fd closed twice. The number was another connection's before
#include "conns.h"
NI static int watch(struct conn *c) {
    if (!ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c))
        return 0;
    close(c->fd);
    conn_destroy(c);
    return -1;
}
NI static int accepted(struct conn *c) {
    c->fd = memfd_create("plain", MFD_CLOEXEC);
    if (!watch(c))
        return 0;
    int failed = close(c->fd) && errno == EBADF;
    conn_destroy(c);
    return failed;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *before = open_conn(EPOLLIN);
    int number = before->fd;
    end_conn(before);
    struct conn *c = conn_create();
    int failed = accepted(c);
    struct epoll_event e[4];
    wait_ms(20, e, 4);
    say("bug; EBADF %d, the number was registered before: %d", failed, c->fd == number);
    hold();
}
