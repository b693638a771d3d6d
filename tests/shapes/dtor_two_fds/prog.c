// CORRECT: the destroy function removes and closes both descriptors of the session, then gives the memory
// back
#define NOPOOL
#include "conns.h"
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
static void drop(int fd) {
    del(fd);
    close(fd);
}
NI void conn_destroy(struct conn *c) {
    drop(c->fd);
    drop(c->up);
    close(c->peer);
    close(c->uppeer);
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
        makepair(&c->up, &c->uppeer);
        add(c->fd, EPOLLIN, c);
        add(c->up, EPOLLIN, c);
        poke(c->peer);
        poke(c->uppeer);
        n += deliveries_of(c, 100);
        take(c->fd);
        take(c->up);
        conn_destroy(c);
    }
    say("correct; events %d", n);
    hold();
}
