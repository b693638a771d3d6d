// CORRECT: EPOLLONESHOT; the loop hands each event to a worker; the worker answers, re-arms (MOD), and at the
// end DELs, closes and destroys — while the loop is still inside its batch
#include "t.h"
static struct conn *q[1024];
static int qh, qt;
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cv = PTHREAD_COND_INITIALIZER;
static int done;
static void *worker(void *a) {
    for (;;) {
        pthread_mutex_lock(&m);
        while (qh == qt)
            pthread_cond_wait(&cv, &m);
        struct conn *c = q[qh++ % 1024];
        pthread_mutex_unlock(&m);
        if (!c)
            return 0;
        char b;
        if (read(c->fd, &b, 1) == 1 && b == 'a') {
            struct epoll_event e = {EPOLLIN | EPOLLONESHOT, {.ptr = c}};
            epoll_ctl(EP, EPOLL_CTL_MOD, c->fd, &e);
        } else {
            ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
            close(c->fd);
            close(c->peer);
            conn_destroy(c);
            __sync_fetch_and_add(&done, 1);
        }
    }
}
NI static void hand_over(struct conn *c) {
    pthread_mutex_lock(&m);
    q[qt++ % 1024] = c;
    pthread_cond_signal(&cv);
    pthread_mutex_unlock(&m);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    pthread_t t[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&t[i], 0, worker, 0);
    ready();
    int n = 0;
    for (int r = 0; r < 10; r++) {
        struct conn *c[8];
        for (int i = 0; i < 8; i++) {
            c[i] = conn_create();
            pairup(c[i]);
            ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN | EPOLLONESHOT, c[i]);
        }
        for (int i = 0; i < 8; i++)
            write(c[i]->peer, "az", 2);
        int want = (r + 1) * 8;
        while (done < want) {
            struct epoll_event e[16];
            int k = wait_ms(20, e, 16);
            for (int j = 0; j < k; j++) {
                n++;
                hand_over(e[j].data.ptr);
                usleep(2000);
            }
        }
    }
    for (int i = 0; i < 3; i++)
        hand_over(0);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], 0);
    say("correct; events %d, ended %d", n, done);
    hold();
}
