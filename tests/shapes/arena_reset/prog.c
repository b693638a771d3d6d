// CORRECT: an arena: all connections are removed and closed, then the arena begins anew without a destroy for
// each; single ones are destroyed now and then
#define NOPOOL
#include "conns.h"
static struct conn arena[16];
static int used;
NI struct conn *conn_create(void) {
    struct conn *c = &arena[used++];
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    if (c == &arena[used - 1])
        used--;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int r = 0; r < 20; r++) {
        struct conn *c[16];
        for (int i = 0; i < 16; i++) {
            c[i] = conn_create();
            pairup(c[i]);
            add(c[i]->fd, EPOLLIN, c[i]);
            poke(c[i]->peer);
            n += deliveries_of(c[i], 50);
            take(c[i]->fd);
        }
        for (int i = 0; i < 16; i++) {
            del(c[i]->fd);
            close(c[i]->fd);
            close(c[i]->peer);
        }
        if (r & 1)
            conn_destroy(c[15]);
        used = 0;
    }
    say("correct; events %d", n);
    hold();
}
