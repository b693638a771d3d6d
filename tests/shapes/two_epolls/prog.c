// CORRECT: each fd is in two epoll instances (one for input, one for output); closed in order DEL, DEL,
// close, destroy — or only close
#include "t.h"
int main(void) {
    int a = epoll_create1(EPOLL_CLOEXEC), b = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        EP = a;
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        EP = b;
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLOUT | EPOLLET, c);
        struct epoll_event e[4];
        write(c->peer, "x", 1);
        EP = a;
        n += wait_ms(50, e, 4);
        EP = b;
        n += wait_ms(50, e, 4);
        if (i & 1) {
            EP = a;
            ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
            EP = b;
            ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        }
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    say("correct; events %d", n);
    hold();
}
