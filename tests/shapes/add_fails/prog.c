// CORRECT: ADD fails (EPERM: a regular file, EEXIST, EBADF, ELOOP or EINVAL), the program copes; then a
// normal life
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int file = memfd_create("plain", MFD_CLOEXEC), n = 0, failed = 0;
    char name[] = "/tmp/shape-add-XXXXXX";
    int plain = mkstemp(name);
    unlink(name);
    ready();
    for (int i = 0; i < 25; i++) {
        struct conn *c = conn_create();
        failed += ctl(EPOLL_CTL_ADD, plain, EPOLLIN, c) < 0 && errno == EPERM;
        failed += ctl(EPOLL_CTL_ADD, file, EPOLLIN, c) < 0 && errno == EPERM;
        failed += ctl(EPOLL_CTL_ADD, 999, EPOLLIN, c) < 0 && errno == EBADF;
        failed += ctl(EPOLL_CTL_ADD, EP, EPOLLIN, c) < 0 && errno == EINVAL;
        if (i % 5 == 0) { // a connection that never came to be registered
            conn_destroy(c);
            continue;
        }
        pairup(c);
        add(c->fd, EPOLLIN, c);
        failed += ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c) < 0 && errno == EEXIST;
        poke(c->peer);
        n += deliveries_of(c, 50);
        end_conn(c);
    }
    say("correct; events %d, failed ADDs %d", n, failed);
    hold();
}
