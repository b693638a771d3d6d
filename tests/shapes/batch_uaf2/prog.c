// BUG (amule #1136) with a handler that takes the session: fair variant for afterfree
#include "sess.h"
NI void on_event(struct sess *s) {
    asm volatile("" ::"r"(s) : "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int uaf = 0;
    for (int i = 0; i < 5; i++) {
        struct k *a = k_create(), *b = k_create();
        ctl(EPOLL_CTL_ADD, a->fd, EPOLLIN, a);
        ctl(EPOLL_CTL_ADD, b->fd, EPOLLIN, b);
        write(a->peer, "x", 1);
        write(b->peer, "x", 1);
        struct epoll_event e[4];
        int n = wait_ms(50, e, 4);
        for (int j = 0; j < n; j++) {
            struct k *d = e[j].data.ptr;
            if (j)
                uaf++;
            on_event(d->s);
            if (!j) {
                struct k *o = d == a ? b : a;
                ctl(EPOLL_CTL_DEL, o->fd, 0, 0);
                close(o->fd);
                close(o->peer);
                k_destroy(o);
            }
        }
        struct k *l = e[0].data.ptr;
        ctl(EPOLL_CTL_DEL, l->fd, 0, 0);
        close(l->fd);
        close(l->peer);
        k_destroy(l);
    }
    say("bug; ran on freed %d", uaf);
    hold();
}
