// BUG: handlers run as coroutines on a stack of their own; the first ends the object of a later event of the
// batch
#include "sess.h"
#include <ucontext.h>
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
static ucontext_t loop, coroutine;
static struct k *current, *other;
static char below[1 << 16] __attribute__((aligned(16)));
static int n, ended;
static void handler(void) {
    for (;;) {
        on_event(current->s);
        n++;
        end(other);
        ended++;
        swapcontext(&coroutine, &loop);
    }
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    getcontext(&coroutine);
    coroutine.uc_stack.ss_sp = below;
    coroutine.uc_stack.ss_size = sizeof below;
    makecontext(&coroutine, handler, 0);
    for (int i = 0; i < 5; i++) {
        open_k();
        open_k();
        struct epoll_event e[4];
        if (wait_ms(50, e, 4) != 2)
            abort();
        current = e[0].data.ptr;
        other = e[1].data.ptr;
        swapcontext(&loop, &coroutine);
        usleep(1000); // e[1] would come now
        end(current);
    }
    say("bug; destroyed while their events were pending in the batch: %d", ended);
    hold();
}
