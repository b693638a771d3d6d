// BUG: one connection of 60 spins; the others are answered by read and write at every event
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c[60];
    for (int i = 0; i < 60; i++)
        c[i] = open_conn(EPOLLIN);
    long n = 0, spun = 0;
    for (double end = seconds() + 3; seconds() < end;) {
        for (int i = 0; i < 60; i++)
            if (i != 30 || !n)
                poke(c[i]->peer);
        struct epoll_event e[64];
        int k = wait_ms(50, e, 64);
        for (int j = 0; j < k; j++, n++) {
            struct conn *d = e[j].data.ptr;
            if (d == c[30]) {
                spun++;
                continue;
            }
            take(d->fd);
            poke(d->fd);
            take(d->peer);
        }
    }
    for (int i = 0; i < 60; i++)
        end_conn(c[i]);
    say("bug; events %ld, of the one that spins %ld", n, spun);
    hold();
}
