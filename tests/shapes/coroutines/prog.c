// CORRECT: handlers run as coroutines on stacks of their own, and one of them waits on a second instance from
// there; each ends its own object
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
static struct k *current;
static int second;
static char below[1 << 16] __attribute__((aligned(16)));
static int n, ended;
static void handler(void) {
    struct epoll_event e[4];
    for (;;) {
        on_event(current->s);
        n++;
        epoll_wait(second, e, 4, 0);
        end(current);
        ended++;
        swapcontext(&coroutine, &loop);
    }
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    second = epoll_create1(EPOLL_CLOEXEC);
    ready();
    char *above = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int stack = 0; stack < 2; stack++) {
        getcontext(&coroutine);
        coroutine.uc_stack.ss_sp = stack ? above : below;
        coroutine.uc_stack.ss_size = 1 << 16;
        makecontext(&coroutine, handler, 0);
        for (int i = 0; i < 10; i++) {
            for (int j = 0; j < 4; j++)
                open_k();
            struct epoll_event e[8];
            int k = wait_ms(50, e, 8);
            for (int j = 0; j < k; j++) {
                current = e[j].data.ptr;
                swapcontext(&loop, &coroutine);
            }
        }
    }
    say("correct; events %d, ended by coroutines %d", n, ended);
    hold();
}
