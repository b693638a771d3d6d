// CORRECT: the destroy of a session destroys a list of streams, recursively; each removes and closes its own
// descriptor
#define NOPOOL
#include "conns.h"
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    if (c->next)
        conn_destroy(c->next);
    del(c->fd);
    close(c->fd);
    close(c->peer);
    free(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *first = 0;
        for (int j = 0; j < 6; j++) {
            struct conn *c = conn_create();
            pairup(c);
            add(c->fd, EPOLLIN, c);
            c->next = first;
            first = c;
        }
        poke(first->peer);
        n += deliveries_of(first, 50);
        conn_destroy(first);
    }
    say("correct; events %d", n);
    hold();
}
