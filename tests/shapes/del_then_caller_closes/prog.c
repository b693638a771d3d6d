// CORRECT: destroy removes the registration and gives the slot back; another function closes the descriptor,
// after more waits
#define NOPOOL
#include "conns.h"
static struct conn *unused;
NI struct conn *conn_create(void) {
    struct conn *c = unused;
    if (c)
        unused = c->next;
    else
        c = calloc(1, sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    del(c->fd);
    c->next = unused;
    unused = c;
}
NI static void close_later(int *fds, int n) {
    for (int i = 0; i < n; i++)
        close(fds[i]);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, extra = 0;
    for (int r = 0; r < 20; r++) {
        int fds[10];
        for (int i = 0; i < 5; i++) {
            struct conn *c = conn_create();
            pairup(c);
            add(c->fd, EPOLLIN, c);
            poke(c->peer);
            n += deliveries_of(c, 50);
            fds[2 * i] = c->fd;
            fds[2 * i + 1] = c->peer;
            conn_destroy(c);
            struct epoll_event e[4];
            extra += wait_ms(0, e, 4);
        }
        close_later(fds, 10);
    }
    say("correct; events %d, after the destroy %d", n, extra);
    hold();
}
