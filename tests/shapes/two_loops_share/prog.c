// CORRECT: two threads wait on one instance (edge-triggered, one-shot); each ends what it was given, in order
#include "conns.h"
static int ended, stop;
static void *loop(void *arg) {
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        struct epoll_event e[4];
        int n = wait_ms(20, e, 4);
        for (int j = 0; j < n; j++) {
            struct conn *c = e[j].data.ptr;
            take(c->fd);
            end_conn(c);
            __atomic_add_fetch(&ended, 1, __ATOMIC_SEQ_CST);
        }
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&t[i], 0, loop, 0);
    for (int i = 0; i < 1000; i++) {
        struct conn *c = conn_create();
        pairup(c);
        int peer = c->peer;
        add(c->fd, EPOLLIN | EPOLLET | EPOLLONESHOT, c);
        poke(peer);
        if (i % 8 == 7)
            while (__atomic_load_n(&ended, __ATOMIC_SEQ_CST) < i)
                usleep(50);
    }
    while (__atomic_load_n(&ended, __ATOMIC_SEQ_CST) < 1000)
        usleep(1000);
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], 0);
    say("correct; ended %d", ended);
    hold();
}
