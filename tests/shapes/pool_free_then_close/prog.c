// CORRECT: the slot goes back to the pool, then the same function closes the fd (no DEL); one thread, no wait
// in between
#include "t.h"
NI static void finish(struct conn *c) {
    int fd = c->fd, peer = c->peer;
    conn_destroy(c);
    close(fd);
    close(peer);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 300; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        if (write(c->peer, "x", 1) != 1)
            abort();
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        char b;
        for (int j = 0; j < k; j++) {
            struct conn *d = e[j].data.ptr;
            read(d->fd, &b, 1);
            finish(d);
            n++;
        }
    }
    say("correct; events %d", n);
    hold();
}
