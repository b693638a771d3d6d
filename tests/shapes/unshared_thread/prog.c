// CORRECT: a thread that has unshared its descriptors (CLONE_FILES) keeps copies of all; removed before they are closed
#include "conns.h"
#include <sched.h>
static volatile int go, stop;
static void *alone(void *a) {
    while (!go)
        usleep(500);
    unshare(CLONE_FILES);
    go = 2;
    while (!stop)
        usleep(1000);
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    pthread_t t;
    pthread_create(&t, 0, alone, 0);
    ready();
    int n = 0, stale = 0;
    struct conn *c[10];
    for (int i = 0; i < 10; i++)
        c[i] = open_conn(EPOLLIN);
    go = 1;
    while (go != 2)
        usleep(500);
    for (int i = 0; i < 10; i++) {
        poke(c[i]->peer);
        n += deliveries_of(c[i], 100);
        take(c[i]->fd);
        int peer = c[i]->peer;
#ifdef TWIN
        close(c[i]->fd);
        conn_destroy(c[i]);
        poke(peer);
        stale += deliveries_of(c[i], 100);
        close(peer);
#else
        end_conn(c[i]);
#endif
    }
    stop = 1;
    pthread_join(t, 0);
    say("correct; events %d, stale %d", n, stale);
    hold();
}
