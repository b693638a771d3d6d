// CORRECT: handlers run the loop of another instance, which handles and ends objects of its own; the outer
// batch holds others
#include "sess.h"
NI void on_event(struct sess *s) {
    asm volatile("" ::"r"(s) : "memory");
}
static void end(struct k *o) {
    ctl(EPOLL_CTL_DEL, o->fd, 0, 0);
    close(o->fd);
    close(o->peer);
    k_destroy(o);
}
static struct k *open_k(void) {
    struct k *o = k_create();
    ctl(EPOLL_CTL_ADD, o->fd, EPOLLIN, o);
    write(o->peer, "x", 1);
    return o;
}
// What a synchronous call in a handler does: it runs the loop until it has its answer.
NI static int inner(int ep) {
    struct epoll_event e[8];
    int n = epoll_wait(ep, e, 8, 20);
    for (int j = 0; j < n; j++) {
        struct k *d = e[j].data.ptr;
        on_event(d->s);
        end(d);
    }
    return n;
}
int main(void) {
    int outer = epoll_create1(EPOLL_CLOEXEC), other = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        EP = outer;
        for (int j = 0; j < 4; j++)
            open_k();
        struct epoll_event e[8];
        int k = wait_ms(50, e, 8);
        for (int j = 0; j < k; j++) {
            struct k *d = e[j].data.ptr;
            on_event(d->s);
            EP = other;
            open_k();
            open_k();
            n += inner(other);
            EP = outer;
            end(d);
        }
    }
    say("correct; events within handlers %d", n);
    hold();
}
