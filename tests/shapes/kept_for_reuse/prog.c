// CORRECT: 1,000 connections are removed and closed; the program keeps their slots for itself, idles 36 s,
// and uses all again
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    static struct conn *c[1000];
    int n = 0;
    for (int i = 0; i < 1000; i++)
        c[i] = conn_create();
    for (int r = 0; r < 2; r++) {
        for (int i = 0; i < 1000; i++) {
            pairup(c[i]);
            add(c[i]->fd, EPOLLIN, c[i]);
            poke(c[i]->peer);
            n += deliveries_of(c[i], 50);
            del(c[i]->fd);
            close(c[i]->fd);
            close(c[i]->peer);
        }
        usleep(r ? 1000 : 36000000);
    }
    for (int i = 0; i < 1000; i++)
        conn_destroy(c[i]);
    say("correct; events %d", n);
    hold();
}
