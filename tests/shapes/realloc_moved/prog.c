// CORRECT: the object grows by realloc(): removed before, registered with its new address after; destroy gets
// the new one. The old address comes back from malloc as another connection, with no destroy in between
#define NOPOOL
#include "conns.h"
NI struct conn *conn_create(void) {
    struct conn *c = malloc(sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    free(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, moved = 0;
    for (int i = 0; i < 40; i++) {
        struct conn *c = conn_create();
        pairup(c);
        add(c->fd, EPOLLIN, c);
        void *fence = malloc(64);
        asm volatile("" : "+r"(fence)); // it lies behind the object, which cannot grow in place
        uintptr_t before = (uintptr_t)c;
        del(c->fd);
        c = realloc(c, 2000);
        moved += (uintptr_t)c != before;
        add(c->fd, EPOLLIN, c);
        poke(c->peer);
        n += deliveries_of(c, 50);
        free(fence);
        del(c->fd);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    say("correct; events %d, moved %d", n, moved);
    hold();
}
