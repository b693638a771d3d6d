// CORRECT: epoll says when there is data; each event is answered by a receive through io_uring
#include "conns.h"
#include <liburing.h>
int main(void) {
    struct io_uring ring;
    if (io_uring_queue_init(8, &ring, 0)) {
        say("no io_uring");
        return 77;
    }
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = open_conn(EPOLLIN);
    int n = 0;
    for (int i = 0; i < 20000; i++) {
        poke(c->peer);
        n += deliveries_of(c, 50);
        char b;
        struct io_uring_sqe *s = io_uring_get_sqe(&ring);
        io_uring_prep_recv(s, c->fd, &b, 1, 0);
        io_uring_submit(&ring);
        struct io_uring_cqe *done;
        io_uring_wait_cqe(&ring, &done);
        if (done->res != 1)
            abort();
        io_uring_cqe_seen(&ring, done);
    }
    end_conn(c);
    say("correct; events, each answered: %d", n);
    hold();
}
