// CORRECT: the loop keeps a count of what is left and takes from the end; a handler that ends a pending
// object puts the last entry in its place
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
    int skipped = 0, n = 0;
    for (int i = 0; i < 10; i++) {
        for (int j = 0; j < 4; j++)
            open_k();
        struct epoll_event e[8] = {0};
        int k = wait_ms(50, e, 8);
        while (k) {
            struct k *d = e[--k].data.ptr;
            memset(&e[k], 0, sizeof e[k]);
            on_event(d->s);
            n++;
            if (k == 3) {
                struct k *o = e[0].data.ptr;
                e[0] = e[--k];
                memset(&e[k], 0, sizeof e[k]);
                skipped++;
                end(o);
            }
            end(d);
        }
    }
    say("correct; events %d, taken out of the batch %d", n, skipped);
    hold();
}
