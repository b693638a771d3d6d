// BUG: real double destroy; conn_create() tail-calls calloc at -O2
#define NOPOOL
#include "t.h"
NI struct conn *conn_create(void) {
    return calloc(1, sizeof(struct conn));
}
NI void conn_destroy(struct conn *c) {
    c->fd = -1;
    asm volatile("" ::: "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        pairup(c);
        int f = c->fd;
        ctl(EPOLL_CTL_ADD, f, EPOLLIN, c);
        ctl(EPOLL_CTL_DEL, f, 0, 0);
        close(f);
        close(c->peer);
        conn_destroy(c);
        conn_destroy(c);
    }
    say("bug; double destroys 5");
    hold();
}
