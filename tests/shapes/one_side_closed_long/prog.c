// CORRECT: 100 sessions of a proxy, more each second; of each the client's descriptor is closed and the upstream one is
// used for 40 seconds more
#include "conns.h"
int main(void) {
    static struct conn *s[100];
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 100; i++) {
        struct conn *c = s[i] = open_conn(EPOLLIN);
        makepair(&c->up, &c->uppeer);
        add(c->up, EPOLLIN, c);
        del(c->fd);
        close(c->fd);
        usleep(100000);
    }
    for (int turn = 0; turn < 38; turn++) {
        for (int i = 0; i < 100; i++)
            poke(s[i]->uppeer);
        for (int i = 0; i < 100; i++) {
            n += deliveries_of(s[i], 100);
            take(s[i]->up);
        }
        usleep(1000000);
    }
    for (int i = 0; i < 100; i++) {
        del(s[i]->up);
        close(s[i]->up);
        conn_destroy(s[i]);
    }
    say("correct; events %d", n);
    hold();
}
