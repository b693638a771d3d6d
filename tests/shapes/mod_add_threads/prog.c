// CORRECT: three threads register and re-arm their connections in one shared instance by MOD, and by ADD
// where that says ENOENT; the loop thread waits meanwhile
#include "conns.h"
static int seen[3], stop, added;
static void *user(void *arg) {
    long me = (long)arg;
    for (int i = 0; i < 40; i++) {
        struct conn *c = conn_create();
        pairup(c);
        c->up = me;
        for (int r = 0; r < 3; r++) {
            int before = __atomic_load_n(&seen[me], __ATOMIC_SEQ_CST);
            if (ctl(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLONESHOT, c) && errno == ENOENT) {
                add(c->fd, EPOLLIN | EPOLLONESHOT, c);
                __atomic_add_fetch(&added, 1, __ATOMIC_SEQ_CST);
            }
            poke(c->peer);
            while (__atomic_load_n(&seen[me], __ATOMIC_SEQ_CST) == before)
                usleep(100);
            take(c->fd);
        }
        end_conn(c);
    }
    return 0;
}
static void *loop(void *arg) {
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        struct epoll_event e[8];
        int n = wait_ms(20, e, 8);
        for (int j = 0; j < n; j++)
            __atomic_add_fetch(&seen[((struct conn *)e[j].data.ptr)->up], 1, __ATOMIC_SEQ_CST);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    pthread_t waiter, t[3];
    pthread_create(&waiter, 0, loop, 0);
    for (long i = 0; i < 3; i++)
        pthread_create(&t[i], 0, user, (void *)i);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], 0);
    stop = 1;
    pthread_join(waiter, 0);
    say("correct; events %d, MOD then ADD %d", seen[0] + seen[1] + seen[2], added);
    hold();
}
