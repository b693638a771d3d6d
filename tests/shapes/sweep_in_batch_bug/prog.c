// BUG: between the wait and the handlers the loop sweeps what has timed out, objects with events in the batch
// among it
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
NI static void sweep(struct k *expired) {
    end(expired);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int freed = 0;
    for (int i = 0; i < 5; i++) {
        struct k *old = open_k(), *young = open_k();
        struct epoll_event e[4];
        int n = wait_ms(50, e, 4);
        sweep(old);
        for (int j = 0; j < n; j++) {
            struct k *d = e[j].data.ptr;
            if (d == young) // what a real loop does not ask
                on_event(d->s);
            else
                freed++;
        }
        end(young);
    }
    say("bug; swept while their events were pending in the batch: %d", freed);
    hold();
}
