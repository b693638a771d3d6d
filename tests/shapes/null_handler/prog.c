// CORRECT: what a handler ends of the same batch is nulled there; the loop calls the handler for every entry, and that
// returns at once for none
#include "conns.h"
static struct epoll_event e[8];
static int n, handled, nulls;
static struct conn *victim;
NI void on_event(struct conn *c) {
    asm volatile("" ::: "memory");
    if (!c) {
        nulls++;
        return;
    }
    take(c->fd);
    handled++;
    struct conn *v = victim;
    if (!v || v == c)
        return;
    victim = 0;
    for (int i = 0; i < n; i++)
        if (e[i].data.ptr == v)
            e[i].data.ptr = 0;
    end_conn(v);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int r = 0; r < 30; r++) {
        struct conn *a = open_conn(EPOLLIN), *b = open_conn(EPOLLIN);
        poke(a->peer);
        poke(b->peer);
        victim = r >= 10 ? b : 0;
        n = wait_ms(50, e, 8);
        for (int i = 0; i < n; i++)
            on_event(e[i].data.ptr);
        end_conn(a);
        if (r < 10)
            end_conn(b);
    }
    say("correct; handled %d, none %d", handled, nulls);
    hold();
}
