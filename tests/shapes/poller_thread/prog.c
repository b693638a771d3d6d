// CORRECT, Asio-like: a poller queues the events of its batch for workers and returns; they handle and
// destroy, often before it waits again. The profile has a dispatch that runs on the workers
#include "sess.h"
NI void on_event(struct sess *s) {
    asm volatile("" ::"r"(s) : "memory");
}
static struct k *queue[4096];
static unsigned head, tail;
static int done;
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cv = PTHREAD_COND_INITIALIZER;
static void push(struct k *o) {
    pthread_mutex_lock(&m);
    queue[tail++ % 4096] = o;
    pthread_cond_signal(&cv);
    pthread_mutex_unlock(&m);
}
static void *worker(void *arg) {
    for (;;) {
        pthread_mutex_lock(&m);
        while (head == tail)
            pthread_cond_wait(&cv, &m);
        struct k *o = queue[head++ % 4096];
        pthread_mutex_unlock(&m);
        if (!o)
            return 0;
        on_event(o->s);
        char b;
        read(o->fd, &b, 1);
        ctl(EPOLL_CTL_DEL, o->fd, 0, 0);
        close(o->fd);
        close(o->peer);
        k_destroy(o);
        __atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST);
    }
}
NI static int run_once(void) {
    struct epoll_event e[32];
    int n = wait_ms(20, e, 32);
    for (int j = 0; j < n; j++)
        push(e[j].data.ptr);
    return n;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    pthread_t t[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&t[i], 0, worker, 0);
    ready();
    int n = 0, want = 0;
    for (int r = 0; r < 30; r++) {
        for (int j = 0; j < 16; j++, want++) {
            struct k *o = k_create();
            int peer = o->peer;
            ctl(EPOLL_CTL_ADD, o->fd, EPOLLIN | EPOLLET | EPOLLONESHOT, o);
            write(peer, "x", 1);
        }
        while (n < want) {
            n += run_once();
            usleep(1500); // other work of the poller, outside of its batch
        }
    }
    for (int i = 0; i < 3; i++)
        push(0);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], 0);
    say("correct; events %d, ended by workers %d", n, done);
    hold();
}
