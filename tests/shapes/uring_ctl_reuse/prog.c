// CORRECT: connections come from malloc and are removed and closed before they end, half of them never
// registered; their memory comes back as objects of another kind, which are registered
// through io_uring (IORING_OP_EPOLL_CTL)
#define NOPOOL
#include "conns.h"
#include <liburing.h>
static struct io_uring r;
NI struct conn *conn_create(void) {
    struct conn *c = malloc(sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    free(c);
    asm volatile("");
}
static void end_conn(struct conn *c) {
    del(c->fd);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
}
static void through(int op, int fd, void *data) {
    struct epoll_event e = {EPOLLIN, {.ptr = data}};
    struct io_uring_sqe *s = io_uring_get_sqe(&r);
    struct io_uring_cqe *q;
    io_uring_prep_epoll_ctl(s, EP, fd, op, &e);
    io_uring_submit(&r);
    io_uring_wait_cqe(&r, &q);
    if (q->res)
        abort();
    io_uring_cqe_seen(&r, q);
}
int main(void) {
    int uring = !io_uring_queue_init(8, &r, 0);
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; uring && i < 20; i++) {
        struct conn *c = conn_create();
        if (i & 1) {
            pairup(c);
            add(c->fd, EPOLLIN, c);
            end_conn(c);
        } else {
            conn_destroy(c);
        }
        char *timer = malloc(sizeof(struct conn));
        int fd = eventfd(1, EFD_CLOEXEC);
        through(EPOLL_CTL_ADD, fd, timer);
        n += deliveries_of(timer, 100);
        through(EPOLL_CTL_DEL, fd, 0);
        close(fd);
        free(timer);
    }
    say("correct; events %d", n);
    hold();
}
