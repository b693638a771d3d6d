// CORRECT: registrations are made and removed through io_uring (IORING_OP_EPOLL_CTL); waited for, then closed, destroyed
#include "conns.h"
#include <liburing.h>
static struct io_uring r;
static int through(int op, int fd, void *data) {
    struct epoll_event e = {EPOLLIN, {.ptr = data}};
    struct io_uring_sqe *s = io_uring_get_sqe(&r);
    io_uring_prep_epoll_ctl(s, EP, fd, op, &e);
    io_uring_submit(&r);
    struct io_uring_cqe *q;
    io_uring_wait_cqe(&r, &q);
    int res = q->res;
    io_uring_cqe_seen(&r, q);
    return res;
}
int main(void) {
    if (io_uring_queue_init(8, &r, 0)) {
        ready();
        say("no io_uring");
        return 0;
    }
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, bad = 0, stale = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        bad += through(EPOLL_CTL_ADD, c->fd, c) != 0;
        poke(c->peer);
        n += deliveries_of(c, 100);
#ifndef TWIN
        take(c->fd);
        bad += through(EPOLL_CTL_DEL, c->fd, 0) != 0;
        close(c->fd);
        conn_destroy(c);
#else
        conn_destroy(c);
        stale += deliveries_of(c, 100);
        close(c->fd);
#endif
        close(c->peer);
    }
    say("correct; events %d, refused %d, stale %d", n, bad, stale);
    hold();
}
