// CORRECT: refcounted object, the only function there is to name as destroy is conn_destroy(c) = unref
#define NOPOOL
#include "t.h"
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    c->gen = 2;
    return c;
}
NI void conn_destroy(struct conn *c) {
    if (--c->gen)
        return;
    free(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        conn_destroy(c);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    say("correct (refcount 2 -> 1 -> 0)");
    hold();
}
