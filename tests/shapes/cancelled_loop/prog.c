// CORRECT: a loop thread is cancelled in its wait; its clean-up handler gives its connections back; the main thread
// joins it, then closes the instance and the descriptors. Two threads have waited there: the main one did at first
#include "conns.h"
static struct conn *all[8];
static int fds[8], peers[8], events;
static void cleanup(void *arg) {
    for (int i = 0; i < 8; i++)
        conn_destroy(all[i]);
}
static void *loop(void *arg) {
    pthread_cleanup_push(cleanup, 0);
    for (;;) {
        struct epoll_event e[4];
        int n = epoll_wait(EP, e, 4, -1);
        for (int i = 0; i < n; i++) {
            take(((struct conn *)e[i].data.ptr)->fd);
            events++;
        }
    }
    pthread_cleanup_pop(0);
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int r = 0; r < 3; r++) {
        if (r)
            EP = epoll_create1(EPOLL_CLOEXEC);
        for (int i = 0; i < 8; i++) {
            all[i] = open_conn(EPOLLIN);
            fds[i] = all[i]->fd;
            peers[i] = all[i]->peer;
        }
        poke(peers[0]);
        events += deliveries_of(all[0], 50);
        take(fds[0]);
        pthread_t t;
        pthread_create(&t, 0, loop, 0);
        for (int i = 0; i < 8; i++)
            poke(peers[i]);
        usleep(100000);
        pthread_cancel(t);
        pthread_join(t, 0);
        close(EP);
        for (int i = 0; i < 8; i++) {
            close(fds[i]);
            close(peers[i]);
        }
    }
    say("correct; events %d", events);
    hold();
}
