// CORRECT: an epoll fd inside an epoll fd; the outer userdata is a slot (per-tenant loop); tenants end by
// closing the inner epoll fd, then destroy
#include "t.h"
int main(void) {
    int outer = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, m = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *t = conn_create(), *c = conn_create();
        t->fd = epoll_create1(EPOLL_CLOEXEC);
        pairup(c);
        EP = outer;
        ctl(EPOLL_CTL_ADD, t->fd, EPOLLIN, t);
        EP = t->fd;
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        write(c->peer, "x", 1);
        struct epoll_event e[4];
        EP = outer;
        n += wait_ms(50, e, 4);
        EP = t->fd;
        m += wait_ms(50, e, 4);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
        close(t->fd);
        conn_destroy(t);
    }
    say("correct; outer %d inner %d", n, m);
    hold();
}
