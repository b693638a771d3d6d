// CORRECT (JDK EPoll / wepoll #34 user shape): MOD first; when ENOENT, ADD. DEL, close, destroy in order
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        for (int r = 0; r < 2; r++) {
            if (ctl(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLONESHOT, c) && errno == ENOENT)
                ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLONESHOT, c);
            write(c->peer, "x", 1);
            struct epoll_event e[4];
            n += wait_ms(50, e, 4);
        }
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    say("correct; events %d", n);
    hold();
}
