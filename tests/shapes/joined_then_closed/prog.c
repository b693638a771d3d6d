// CORRECT: orderly exit: the loop thread is stopped and joined; then the main thread closes and destroys all
// connections without DEL: nobody waits any more
#include "conns.h"
static int stop, n;
static void *loop(void *arg) {
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        struct epoll_event e[16];
        int k = wait_ms(20, e, 16);
        for (int j = 0; j < k; j++, n++)
            take(((struct conn *)e[j].data.ptr)->fd);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c[100];
    pthread_t t;
    pthread_create(&t, 0, loop, 0);
    for (int i = 0; i < 100; i++)
        poke((c[i] = open_conn(EPOLLIN))->peer);
    usleep(200000);
    stop = 1;
    pthread_join(t, 0);
    for (int i = 0; i < 100; i++) {
        close(c[i]->fd);
        close(c[i]->peer);
        conn_destroy(c[i]);
    }
    say("correct; events %d", n);
    hold();
}
