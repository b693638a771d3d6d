// CORRECT: the create function registers with epoll itself and returns the slot
#define NOPOOL
#include "t.h"
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    pairup(c);
    ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
    return c;
}
NI void conn_destroy(struct conn *c) {
    memset(c, 0x5a, sizeof *c);
    free(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 50; i++) {
        struct conn *c = conn_create();
        if (write(c->peer, "x", 1) != 1)
            abort();
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        for (int j = 0; j < k; j++) {
            struct conn *d = e[j].data.ptr;
            char b;
            if (read(d->fd, &b, 1) == 1)
                n++;
            ctl(EPOLL_CTL_DEL, d->fd, 0, 0);
            close(d->fd);
            close(d->peer);
            conn_destroy(d);
        }
    }
    say("correct; handled %d", n);
    hold();
}
