// BUG: a list that holds a connection twice is emptied: destroyed twice in a loop, at one call site
#define NOPOOL
#include "conns.h"
static struct conn pool[64];
static int used;
NI struct conn *conn_create(void) {
    struct conn *c = &pool[used++];
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    c->fd = -1;
    asm volatile("" ::: "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 10; i++) {
        struct conn *c = conn_create(), *d = conn_create(), *list[] = {c, d, c};
        pairup(c);
        add(c->fd, EPOLLIN, c);
        del(c->fd);
        close(c->fd);
        close(c->peer);
        for (int j = 0; j < 3; j++)
            conn_destroy(list[j]);
    }
    say("bug; double destroys 10");
    hold();
}
