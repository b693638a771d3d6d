// CORRECT: at -O2 the end of a connection is a chain of jumps: finish() jumps to conn_destroy(), that to
// free(); and one that closes after it has destroyed, by a jump to close()
#define NOPOOL
#include "conns.h"
NI struct conn *conn_create(void) {
    return malloc(sizeof(struct conn));
}
NI void conn_destroy(struct conn *c) {
    free(c);
}
NI static void finish(struct conn *c) {
    del(c->fd);
    close(c->peer);
    close(c->fd);
    conn_destroy(c);
}
NI static int finish_then_close(struct conn *c) {
    int fd = c->fd;
    close(c->peer);
    conn_destroy(c);
    return close(fd);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 100; i++) {
        struct conn *c = conn_create();
        pairup(c);
        add(c->fd, EPOLLIN, c);
        poke(c->peer);
        n += deliveries_of(c, 50);
        if (i & 1)
            finish(c);
        else
            finish_then_close(c);
    }
    say("correct; events %d", n);
    hold();
}
