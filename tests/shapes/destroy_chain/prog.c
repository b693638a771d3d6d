// CORRECT: the destroy of a session destroys its connections; each of those calls back the destroy of the
// session, which knows that it is at it
#define NOPOOL
#include "conns.h"
NI void conn_destroy(struct conn *c);
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    c->fd = -1;
    asm volatile("" : "+r"(c));
    return c;
}
NI static void detach(struct conn *owner) {
    conn_destroy(owner);
}
NI void conn_destroy(struct conn *c) {
    if (c->up)
        return; // it is being destroyed further out
    c->up = 1;
    if (c->next) { // a session with its upstream
        struct conn *child = c->next;
        c->next = 0;
        conn_destroy(child);
    } else if (c->gen)
        detach((struct conn *)(uintptr_t)c->gen);
    del(c->fd);
    close(c->fd);
    close(c->peer);
    memset(c->buf, 0x5a, sizeof c->buf);
    free(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 40; i++) {
        struct conn *owner = conn_create(), *child = conn_create();
        pairup(owner);
        pairup(child);
        owner->next = child;
        child->gen = (uintptr_t)owner;
        add(owner->fd, EPOLLIN, owner);
        add(child->fd, EPOLLIN, child);
        poke(owner->peer);
        n += deliveries_of(owner, 50);
        conn_destroy(owner);
    }
    say("correct; events %d", n);
    hold();
}
