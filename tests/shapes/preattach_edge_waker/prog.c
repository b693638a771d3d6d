// CORRECT (Boost.Asio): an edge-triggered eventfd, registered before the attach, always readable and never read; each MOD
// with the same events wakes one of the threads that wait
#include "conns.h"
static struct conn *waker;
static int woken;
static double end;
static void *loop(void *arg) {
    struct epoll_event e[4];
    while (seconds() < end) {
        if (wait_ms(100, e, 4) < 1)
            continue;
        __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
        struct epoll_event again = {.events = EPOLLIN | EPOLLERR | EPOLLET, .data.ptr = waker};
        if (epoll_ctl(EP, EPOLL_CTL_MOD, waker->fd, &again))
            abort();
        usleep(50);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    waker = conn_create();
    waker->fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    add(waker->fd, EPOLLIN | EPOLLERR | EPOLLET, waker);
    ready();
    end = seconds() + 8;
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&t[i], 0, loop, 0);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], 0);
    del(waker->fd);
    close(waker->fd);
    conn_destroy(waker);
    say("correct; woken %d", woken);
    hold();
}
