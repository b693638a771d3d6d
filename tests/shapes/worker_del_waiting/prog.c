// CORRECT: one-shot; the loop hands the connection to a worker and waits again; the worker removes, closes,
// destroys
#include "conns.h"
static struct conn *todo;
static int ended, stop;
static void *worker(void *arg) {
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        struct conn *c = __atomic_exchange_n(&todo, 0, __ATOMIC_SEQ_CST);
        if (!c) {
            usleep(200);
            continue;
        }
        usleep(4000); // the loop is back in its wait
        int peer = c->peer;
        del(c->fd);
        close(c->fd);
        conn_destroy(c);
        close(peer);
        __atomic_add_fetch(&ended, 1, __ATOMIC_SEQ_CST);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    pthread_t t;
    pthread_create(&t, 0, worker, 0);
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = open_conn(EPOLLIN | EPOLLONESHOT);
        poke(c->peer);
        while (__atomic_load_n(&ended, __ATOMIC_SEQ_CST) <= i) {
            struct epoll_event e[4];
            int k = wait_ms(20, e, 4);
            for (int j = 0; j < k; j++, n++)
                __atomic_store_n(&todo, e[j].data.ptr, __ATOMIC_SEQ_CST);
        }
    }
    stop = 1;
    pthread_join(t, 0);
    say("no wrong delivery; events %d, ended by the worker %d", n, ended);
    hold();
}
