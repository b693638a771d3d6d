// CORRECT by refcount hand-over: edge-triggered; a worker closes (no DEL) while the loop is inside
// epoll_wait; the slot is destroyed by the loop after the worker told it through an eventfd
#include "t.h"
static struct conn *todo;
static int ev, wake;
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static struct conn *back[64];
static int nb;
static void *worker(void *a) {
    for (;;) {
        struct conn *c = __atomic_exchange_n(&todo, 0, 5);
        if (!c) {
            usleep(200);
            continue;
        }
        if (c == (void *)1)
            return 0;
        usleep(3000);
        close(c->fd);
        pthread_mutex_lock(&m);
        back[nb++] = c;
        pthread_mutex_unlock(&m);
        uint64_t one = 1;
        write(wake, &one, 8);
    }
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    wake = eventfd(0, EFD_NONBLOCK);
    ctl(EPOLL_CTL_ADD, wake, EPOLLIN, (void *)1);
    ready();
    pthread_t t;
    pthread_create(&t, 0, worker, 0);
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLET, c);
        write(c->peer, "x", 1);
        int live = 1;
        while (live) {
            struct epoll_event e[4];
            int k = wait_ms(100, e, 4);
            for (int j = 0; j < k; j++) {
                if (e[j].data.u64 == 1) {
                    uint64_t b;
                    read(wake, &b, 8);
                    pthread_mutex_lock(&m);
                    while (nb) {
                        struct conn *d = back[--nb];
                        close(d->peer);
                        conn_destroy(d);
                        live = 0;
                    }
                    pthread_mutex_unlock(&m);
                } else {
                    ev++;
                    __atomic_store_n(&todo, e[j].data.ptr, 5);
                }
            }
        }
    }
    __atomic_store_n(&todo, (void *)1, 5);
    pthread_join(t, 0);
    say("no wrong delivery; hazard only (implicit removal on a worker); events %d", ev);
    hold();
}
