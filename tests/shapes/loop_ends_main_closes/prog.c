// CORRECT: each loop is a thread with an instance of its own; at its end it gives its connections back and ends; the
// main thread joins it and closes the instance and the descriptors: nobody waits there any more
#include "conns.h"
static int fds[64], nfds;
static void *loop(void *ep) {
    struct conn *mine[8];
    struct epoll_event e[16];
    EP = (int)(long)ep;
    for (int i = 0; i < 8; i++) {
        mine[i] = open_conn(EPOLLIN);
        fds[nfds++] = mine[i]->fd;
        poke(mine[i]->peer);
    }
    int k = wait_ms(200, e, 16);
    for (int i = 0; i < 8; i++) {
        take(mine[i]->fd);
        close(mine[i]->peer);
        conn_destroy(mine[i]);
    }
    return 0;
}
int main(void) {
    ready();
    for (int i = 0; i < 5; i++) {
        int ep = epoll_create1(EPOLL_CLOEXEC);
        pthread_t t;
        nfds = 0;
        pthread_create(&t, 0, loop, (void *)(long)ep);
        pthread_join(t, 0);
        close(ep);
        for (int j = 0; j < nfds; j++)
            close(fds[j]);
    }
    say("correct");
    hold();
}
