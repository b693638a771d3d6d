// CORRECT: 50 kept-alive connections are asked and answer for 30 seconds
#include "conns.h"
static struct conn *c[50];
static int stop;
static long answered;
static void *clients(void *arg) {
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        for (int i = 0; i < 50; i++)
            poke(c[i]->peer);
        for (int i = 0; i < 50; i++, answered++)
            take(c[i]->peer);
        usleep(20000);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 50; i++)
        c[i] = open_conn(EPOLLIN);
    pthread_t t;
    pthread_create(&t, 0, clients, 0);
    for (double end = seconds() + 30; seconds() < end;) {
        struct epoll_event e[16];
        int n = wait_ms(50, e, 16);
        for (int j = 0; j < n; j++) {
            struct conn *d = e[j].data.ptr;
            take(d->fd);
            poke(d->fd);
        }
        if (seconds() > end - 0.5)
            __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    }
    pthread_join(t, 0);
    for (int i = 0; i < 50; i++)
        end_conn(c[i]);
    say("correct; answered %ld", answered);
    hold();
}
