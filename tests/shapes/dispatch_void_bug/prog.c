// BUG: a handler takes `void *`, which the profile ties to the slot; the first one ends the object of a later
// event
#include "conns.h"
NI void on_event(void *arg) {
    asm volatile("" ::"r"(arg) : "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int freed = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *a = open_conn(EPOLLIN), *b = open_conn(EPOLLIN);
        poke(a->peer);
        poke(b->peer);
        struct epoll_event e[4];
        int n = wait_ms(50, e, 4);
        struct conn *first = e[0].data.ptr;
        on_event(first);
        if (n == 2) {
            end_conn(first == a ? b : a);
            freed++;
        }
        usleep(1000); // the loop goes on to the second entry
        end_conn(first);
    }
    say("bug; destroyed while their events were pending in the batch: %d", freed);
    hold();
}
