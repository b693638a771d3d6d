// CORRECT: close goes through io_uring (IORING_OP_CLOSE), waited for, then the slot is destroyed
#include "t.h"
#include <liburing.h>
int main(void) {
    struct io_uring r;
    if (io_uring_queue_init(8, &r, 0)) {
        say("no io_uring");
        return 77;
    }
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        struct epoll_event e[4];
        write(c->peer, "x", 1);
        n += wait_ms(50, e, 4);
        struct io_uring_sqe *s = io_uring_get_sqe(&r);
        io_uring_prep_close(s, c->fd);
        io_uring_submit(&r);
        struct io_uring_cqe *q;
        io_uring_wait_cqe(&r, &q);
        if (q->res)
            abort();
        io_uring_cqe_seen(&r, q);
        conn_destroy(c);
        close(c->peer);
    }
    say("correct; events %d", n);
    hold();
}
