// CORRECT (h2o, libevent): the destroy function itself does DEL, close, then gives the memory back
#define NOPOOL
#include "t.h"
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    return c;
}
NI void conn_destroy(struct conn *c) {
    ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
    close(c->fd);
    close(c->peer);
    memset(c, 0x5a, sizeof *c);
    free(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 50; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        if (write(c->peer, "x", 1) != 1)
            abort();
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        for (int j = 0; j < k; j++) {
            struct conn *d = e[j].data.ptr;
            char b;
            if (read(d->fd, &b, 1) == 1)
                n++;
            conn_destroy(d);
        }
    }
    say("correct; handled %d", n);
    hold();
}
