// CORRECT by hand-over, a hazard only: one-shot; workers read, re-arm, and at the end close without DEL and
// hand the slot back to the loop, which destroys it after its batch
#include "conns.h"
static struct conn *todo[256], *back[256];
static unsigned head, tail, nback, done;
static int wake, stop;
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static void *worker(void *arg) {
    for (;;) {
        pthread_mutex_lock(&m);
        struct conn *c = head == tail ? 0 : todo[head++ % 256];
        int over = stop && !c;
        pthread_mutex_unlock(&m);
        if (over)
            return 0;
        if (!c) {
            usleep(300);
            continue;
        }
        char b = 0;
        if (read(c->fd, &b, 1) == 1 && b == 'a') {
            ctl(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLONESHOT, c);
            continue;
        }
        usleep(2000);
        close(c->fd);
        pthread_mutex_lock(&m);
        back[nback++] = c;
        pthread_mutex_unlock(&m);
        eventfd_write(wake, 1);
    }
}
static void destroy_returned(void) {
    pthread_mutex_lock(&m);
    for (; nback; done++) {
        struct conn *c = back[--nback];
        close(c->peer);
        conn_destroy(c);
    }
    pthread_mutex_unlock(&m);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    add(wake, EPOLLIN, (void *)1);
    ready();
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&t[i], 0, worker, 0);
    for (int r = 0; r < 20; r++) {
        for (int i = 0; i < 4; i++)
            write(open_conn(EPOLLIN | EPOLLONESHOT)->peer, "az", 2);
        while (done < 4u * (r + 1)) {
            struct epoll_event e[16];
            int n = wait_ms(20, e, 16);
            for (int j = 0; j < n; j++) {
                eventfd_t count;
                if (e[j].data.u64 == 1) {
                    eventfd_read(wake, &count);
                    continue;
                }
                pthread_mutex_lock(&m);
                todo[tail++ % 256] = e[j].data.ptr;
                pthread_mutex_unlock(&m);
            }
            destroy_returned();
        }
    }
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], 0);
    say("no wrong delivery; ended %u", done);
    hold();
}
