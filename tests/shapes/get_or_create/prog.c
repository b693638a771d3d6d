// CORRECT: session_get() finds the session of a client or makes one; a second connection of the client joins it: one
// object, two descriptors
#include "conns.h"
static struct conn *table[8];
NI struct conn *session_get(int id) {
    if (!table[id])
        table[id] = conn_create();
    struct conn *c = table[id];
    asm volatile("" : "+r"(c));
    return c;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 40; i++) {
        struct conn *c = session_get(i % 8);
        makepair(&c->fd, &c->peer);
        add(c->fd, EPOLLIN, c);
        struct conn *d = session_get(i % 8);
        makepair(&d->up, &d->uppeer);
        add(d->up, EPOLLIN, d);
        poke(c->peer);
        deliveries_of(c, 100);
        del(c->fd);
        del(c->up);
        close(c->fd);
        close(c->up);
        close(c->peer);
        close(c->uppeer);
        table[i % 8] = 0;
        conn_destroy(c);
    }
    say("correct");
    hold();
}
