// CORRECT: as oneshot_worker, the handler on_event(session) runs on the worker; dispatch probe can be tied:
// fair variant
#include "sess.h"
static struct k *q[1024];
static int qh, qt;
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cv = PTHREAD_COND_INITIALIZER;
static int done;
NI void on_event(struct sess *s) {
    asm volatile("" ::"r"(s) : "memory");
}
static void *worker(void *a) {
    for (;;) {
        pthread_mutex_lock(&m);
        while (qh == qt)
            pthread_cond_wait(&cv, &m);
        struct k *c = q[qh++ % 1024];
        pthread_mutex_unlock(&m);
        if (!c)
            return 0;
        on_event(c->s);
        char b;
        read(c->fd, &b, 1);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        k_destroy(c);
        __sync_fetch_and_add(&done, 1);
    }
}
static void push(struct k *c) {
    pthread_mutex_lock(&m);
    q[qt++ % 1024] = c;
    pthread_cond_signal(&cv);
    pthread_mutex_unlock(&m);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&t[i], 0, worker, 0);
    ready();
    for (int r = 0; r < 10; r++) {
        struct k *c[4];
        int p[4];
        for (int i = 0; i < 4; i++) {
            c[i] = k_create();
            p[i] = c[i]->peer;
            ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN | EPOLLONESHOT, c[i]);
            write(p[i], "x", 1);
        }
        while (done < 4 * (r + 1)) {
            struct epoll_event e[8];
            int k = wait_ms(20, e, 8);
            for (int j = 0; j < k; j++) {
                push(e[j].data.ptr);
                usleep(1000);
            }
        }
    }
    for (int i = 0; i < 2; i++)
        push(0);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], 0);
    say("correct; ended %d", done);
    hold();
}
