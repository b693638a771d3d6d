// BUG: one function destroys the connection at two of its lines; without a frame of its own (-O2) its caller looks
// the same from both
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
NI static void hang_up(struct conn *c) {
    del(c->fd);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
    usleep(100);
    conn_destroy(c);
    asm volatile("" ::: "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        pairup(c);
        add(c->fd, EPOLLIN, c);
        hang_up(c);
    }
    say("bug; double destroys 5");
    hold();
}
