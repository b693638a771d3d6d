// BUG (amule/wx #1136, http.zig #208 shape): handler of the first event in a batch destroys the object of a
// later event (DEL + close done)
#include "t.h"
NI void on_event(struct conn *c) {
    asm volatile("" ::"r"(c) : "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int uaf = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *a = conn_create(), *b = conn_create();
        pairup(a);
        pairup(b);
        ctl(EPOLL_CTL_ADD, a->fd, EPOLLIN, a);
        ctl(EPOLL_CTL_ADD, b->fd, EPOLLIN, b);
        write(a->peer, "x", 1);
        write(b->peer, "x", 1);
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4), gone = -1;
        for (int j = 0; j < k; j++) {
            struct conn *d = e[j].data.ptr;
            if (j == 1)
                uaf++;
            on_event(d);
            if (j == 0) {
                struct conn *o = d == a ? b : a;
                ctl(EPOLL_CTL_DEL, o->fd, 0, 0);
                close(o->fd);
                close(o->peer);
                conn_destroy(o);
            }
        }
        struct conn *l = e[0].data.ptr;
        ctl(EPOLL_CTL_DEL, l->fd, 0, 0);
        close(l->fd);
        close(l->peer);
        conn_destroy(l);
    }
    say("bug; destroyed while in the batch 5, handler ran on a freed one %d", uaf);
    hold();
}
