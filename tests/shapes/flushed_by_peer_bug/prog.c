// BUG: the handler of one side flushes the other by its handler, then ends it; the other's own event of the same batch
// comes afterwards, for a freed object
#include "conns.h"
static struct conn *other;
static int quit, late;
NI void on_event(struct conn *c) {
    asm volatile("" : "+r"(c));
    late += c == other && quit;
    if (c == other || quit)
        return;
    on_event(other); /* flush */
    end_conn(other);
    quit = 1;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 20; i++) {
        struct conn *a = open_conn(EPOLLIN);
        other = open_conn(EPOLLIN);
        poke(a->peer);
        poke(other->peer);
        quit = 0;
        struct epoll_event e[4];
        int k = wait_ms(200, e, 4);
        for (int j = 0; j < k; j++)
            on_event(e[j].data.ptr);
        end_conn(a);
    }
    say("bug; handled after the end: %d", late);
    hold();
}
