// CORRECT: conn_create() registers the connection and calls its handler for what came with the connection, before it
// returns; hang-ups are answered by another function, which ends the connection
#define NOPOOL
#include "conns.h"
static int handled, hung;
NI void on_event(struct conn *c) {
    asm volatile("" ::: "memory");
    take(c->fd);
    handled++;
}
NI void conn_destroy(struct conn *c) {
    free(c);
}
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    pairup(c);
    add(c->fd, EPOLLIN, c);
    poke(c->peer);
    on_event(c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void on_hup(struct conn *c) {
    del(c->fd);
    close(c->fd);
    conn_destroy(c);
    hung++;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 30; i++) {
        struct conn *c = conn_create();
        struct epoll_event e[4];
        poke(c->peer);
        int n = wait_ms(50, e, 4);
        for (int j = 0; j < n; j++)
            on_event(e[j].data.ptr);
        close(c->peer);
        n = wait_ms(50, e, 4);
        for (int j = 0; j < n; j++)
            if (e[j].events & EPOLLHUP)
                on_hup(e[j].data.ptr);
    }
    say("correct; handled %d, hung up %d", handled, hung);
    hold();
}
