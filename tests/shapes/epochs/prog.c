// CORRECT: three loops share an instance; what one of them removes and closes is destroyed when each of the others has begun
// a new batch since (epochs)
#include "conns.h"
#include <stdatomic.h>
#define LOOPS 3
static atomic_ulong epoch[LOOPS];
static atomic_int made, ended, stop;
struct limbo {
    struct conn *c;
    unsigned long at[LOOPS];
};
static void *loop(void *a) {
    int me = (int)(long)a, n = 0;
    struct limbo q[512];
    while (!stop) {
        struct epoll_event e[8];
        int k = epoll_wait(EP, e, 8, 5);
        epoch[me]++;
        for (int j = 0; j < k; j++) {
            struct conn *c = e[j].data.ptr;
            char b;
            if (read(c->fd, &b, 1) != 1)
                continue;
            ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
            close(c->fd), close(c->peer);
            q[n].c = c;
            for (int i = 0; i < LOOPS; i++)
                q[n].at[i] = epoch[i];
            n++;
            usleep(300);
        }
        for (int i = 0; i < n; i++) {
            int safe = 1;
#ifndef TWIN
            for (int o = 0; o < LOOPS; o++)
                safe &= o == me || epoch[o] > q[i].at[o];
#endif
            if (safe) {
                conn_destroy(q[i].c);
                ended++;
                q[i--] = q[--n];
            }
        }
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    pthread_t t[LOOPS];
    for (long i = 0; i < LOOPS; i++)
        pthread_create(&t[i], 0, loop, (void *)i);
    ready();
    for (int i = 0; i < 200; i++) {
        struct conn *c = conn_create();
        pairup(c);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        poke(c->peer);
        add(c->fd, EPOLLIN | EPOLLONESHOT, c);
        made++;
        if (i % 4 == 3)
            usleep(1500);
    }
    while (ended < made)
        usleep(1000);
    stop = 1;
    for (int i = 0; i < LOOPS; i++)
        pthread_join(t[i], 0);
    say("correct; ended %d", ended);
    hold();
}
