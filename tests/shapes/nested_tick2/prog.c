// BUG (Bun #31469) fair variant: a handler waits on ANOTHER epoll instance (nested tick), that handler
// destroys an object that the outer batch still carries
#include "sess.h"
NI void on_event(struct sess *s) {
    asm volatile("" ::"r"(s) : "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int in = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int uaf = 0;
    for (int i = 0; i < 5; i++) {
        struct k *a = k_create(), *b = k_create();
        ctl(EPOLL_CTL_ADD, a->fd, EPOLLIN, a);
        ctl(EPOLL_CTL_ADD, b->fd, EPOLLIN, b);
        write(a->peer, "x", 1);
        write(b->peer, "x", 1);
        struct epoll_event e[4], f[4];
        int n = wait_ms(50, e, 4);
        for (int j = 0; j < n; j++) {
            struct k *d = e[j].data.ptr;
            if (j) {
                uaf++;
                continue;
            }
            on_event(d->s);
            epoll_wait(in, f, 4, 1);
            struct k *o = d == a ? b : a;
            ctl(EPOLL_CTL_DEL, o->fd, 0, 0);
            close(o->fd);
            close(o->peer);
            k_destroy(o);
        }
        struct k *l = e[0].data.ptr;
        ctl(EPOLL_CTL_DEL, l->fd, 0, 0);
        close(l->fd);
        close(l->peer);
        k_destroy(l);
    }
    say("bug; the batch carried a freed object %d times", uaf);
    hold();
}
