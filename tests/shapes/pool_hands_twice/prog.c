// BUG: the pool's free list is broken: now and then it gives out a slot that is in use; both owners register
// it
#define NOPOOL
#include "conns.h"
static struct conn pool[256];
static int used, calls;
NI struct conn *conn_create(void) {
    if (++calls % 6 == 0)
        used--;
    struct conn *c = &pool[used++];
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    c->gen++;
    asm volatile("" ::: "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int twice = 0;
    struct conn *last = 0;
    for (int i = 0; i < 36; i++) {
        struct conn *c = conn_create();
        int fd, peer;
        makepair(&fd, &peer);
        c->fd = fd;
        add(fd, EPOLLIN, c);
        twice += c == last;
        last = c;
    }
    say("bug; given out while in use %d", twice);
    hold();
}
