// CORRECT: a worker's loop is stopped and joined; the main thread gives its connections back, goes on with its own
// control instance for two seconds, then closes the worker's instance and descriptors: nobody ever waits there again
#include "conns.h"
static struct conn *all[8];
static int fds[8], peers[8], stop, events;
static void *loop(void *arg) {
    while (!__atomic_load_n(&stop, 5)) {
        struct epoll_event e[4];
        int n = wait_ms(20, e, 4);
        for (int i = 0; i < n; i++) {
            take(((struct conn *)e[i].data.ptr)->fd);
            events++;
        }
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int control = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 8; i++) {
        all[i] = open_conn(EPOLLIN);
        fds[i] = all[i]->fd;
        peers[i] = all[i]->peer;
    }
    pthread_t t;
    pthread_create(&t, 0, loop, 0);
    for (int i = 0; i < 8; i++)
        poke(peers[i]);
    usleep(100000);
    stop = 1;
    pthread_join(t, 0);
    for (int i = 0; i < 8; i++)
        conn_destroy(all[i]);
    for (int i = 0; i < 40; i++) {
        struct epoll_event e[4];
        epoll_wait(control, e, 4, 50);
    }
    close(EP);
    for (int i = 0; i < 8; i++) {
        close(fds[i]);
        close(peers[i]);
    }
    say("correct; events %d", events);
    hold();
}
