// CORRECT (mio, Go): an edge-triggered eventfd that wakes the loop is written to and never read
#include "conns.h"
static struct conn *waker;
static int woken;
static void *other(void *arg) {
    for (int i = 0; i < 30000; i++) {
        eventfd_write(waker->fd, 1);
        while (__atomic_load_n(&woken, __ATOMIC_SEQ_CST) <= i)
            usleep(1);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    waker = conn_create();
    waker->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    add(waker->fd, EPOLLIN | EPOLLET, waker);
    pthread_t t;
    pthread_create(&t, 0, other, 0);
    while (woken < 30000)
        if (deliveries_of(waker, 100))
            __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    pthread_join(t, 0);
    del(waker->fd);
    close(waker->fd);
    conn_destroy(waker);
    say("correct; woken %d", woken);
    hold();
}
