// CORRECT: the handler of the first event ends the object of a later one and takes its entry out of the batch
// by moving the rest down
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
        struct epoll_event e[8];
        int k = wait_ms(50, e, 8);
        for (int j = 0; j < k; j++) {
            struct k *d = e[j].data.ptr;
            on_event(d->s);
            n++;
            if (j == 0) {
                struct k *o = e[2].data.ptr;
                memmove(&e[2], &e[3], (k - 3) * sizeof e[0]);
                k--;
                skipped++;
                end(o);
            }
            end(d);
        }
    }
    say("correct; events %d, taken out of the batch %d", n, skipped);
    hold();
}
