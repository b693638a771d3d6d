// CORRECT: another thread wakes the loop by arming a one-shot eventfd again, which is always readable and never read
#include "conns.h"
static struct conn *waker;
static int woken, over;
static void *other(void *arg) {
    double end = seconds() + 8;
    for (int i = 0; seconds() < end; i++) {
        struct epoll_event e = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = waker};
        if (epoll_ctl(EP, EPOLL_CTL_MOD, waker->fd, &e))
            abort();
        while (__atomic_load_n(&woken, __ATOMIC_SEQ_CST) <= i)
            usleep(1);
    }
    over = 1;
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    waker = conn_create();
    waker->fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    add(waker->fd, EPOLLONESHOT, waker);
    pthread_t t;
    pthread_create(&t, 0, other, 0);
    while (!__atomic_load_n(&over, __ATOMIC_SEQ_CST))
        if (deliveries_of(waker, 100))
            __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    pthread_join(t, 0);
    del(waker->fd);
    close(waker->fd);
    conn_destroy(waker);
    say("correct; woken %d", woken);
    hold();
}
