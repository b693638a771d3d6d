// BUG: destroyed by the handler (inlined at -O2), and again by the clean-up, which calls it through a pointer
#define NOPOOL
#include "conns.h"
static struct conn pool[64], *unused;
static int used;
NI struct conn *conn_create(void) {
    struct conn *c = unused;
    if (c)
        unused = c->next;
    else
        c = &pool[used++];
    asm volatile("" : "+r"(c));
    return c;
}
static inline void conn_destroy(struct conn *c) {
    c->fd = -1;
    c->next = unused;
    unused = c;
}
static void (*volatile cleanup)(struct conn *) = conn_destroy;
NI static void on_close(struct conn *c) {
    del(c->fd);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        pairup(c);
        add(c->fd, EPOLLIN, c);
        on_close(c);
        usleep(1000);
        cleanup(c);
        unused = 0; // this program is not to be harmed by its ring
    }
    say("bug; double destroys 5");
    hold();
}
