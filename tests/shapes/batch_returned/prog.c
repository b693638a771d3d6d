// CORRECT: the batch is on the stack of a function that returned: it only marks what is ready. The objects
// that the caller then ends are taken off the list of the ready ones first, and handled never
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
static struct k *queue[64];
static int queued;
NI static void poll_once(void) {
    struct epoll_event e[16];
    int n = wait_ms(50, e, 16);
    for (int j = 0; j < n; j++)
        queue[queued++] = e[j].data.ptr;
}
NI static void drop(struct k *o) {
    for (int j = 0; j < queued; j++)
        if (queue[j] == o)
            queue[j] = queue[--queued];
    end(o);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, dropped = 0;
    for (int i = 0; i < 15; i++) {
        for (int j = 0; j < 4; j++)
            open_k();
        poll_once();
        while (queued) {
            struct k *d = queue[--queued];
            on_event(d->s);
            n++;
            if (queued) {
                drop(queue[0]);
                dropped++;
            }
            end(d);
        }
    }
    say("correct; events %d, dropped %d", n, dropped);
    hold();
}
