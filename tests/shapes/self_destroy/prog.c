// CORRECT: eight events in a batch, each handler ends its own object
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
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 50; i++) {
        for (int j = 0; j < 8; j++)
            open_k();
        struct epoll_event e[16];
        int k = wait_ms(50, e, 16);
        for (int j = 0; j < k; j++, n++) {
            struct k *d = e[j].data.ptr;
            on_event(d->s);
            end(d);
        }
    }
    say("correct; events %d", n);
    hold();
}
