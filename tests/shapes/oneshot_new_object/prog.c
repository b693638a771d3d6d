// CORRECT: one-shot; the object of an event is one operation: freed while the registration is disarmed (nothing, not
// even EPOLLHUP, comes then), and the next operation re-arms it by MOD with a new object. As awaiters of coroutines are.
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 10; i++) {
        int fd, peer;
        makepair(&fd, &peer);
        struct conn *op = conn_create();
        op->fd = fd;
        add(fd, EPOLLIN | EPOLLONESHOT, op);
        for (int turn = 0; turn < 5; turn++) {
            poke(peer);
            struct epoll_event e[4];
            int k = wait_ms(200, e, 4);
            if (k != 1 || e[0].data.ptr != op)
                abort();
            n++;
            take(fd);
            conn_destroy(op);
            struct conn *pad = conn_create(); /* the next one is at another address */
            wait_ms(1, e, 4); /* others' events */
            op = conn_create();
            conn_destroy(pad);
            if (ctl(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, op))
                abort();
        }
        del(fd);
        close(fd);
        close(peer);
        conn_destroy(op);
    }
    say("correct; events %d", n);
    hold();
}
