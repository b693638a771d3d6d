// CORRECT: while the loop closes and destroys in order, another thread opens and closes files: it gets the
// numbers at once
#include "conns.h"
static int stop;
static void *files(void *arg) {
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        int fd[4];
        for (int i = 0; i < 4; i++)
            fd[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        for (int i = 0; i < 4; i++)
            close(fd[i]);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    pthread_t t;
    pthread_create(&t, 0, files, 0);
    int n = 0;
    for (int i = 0; i < 2000; i++) {
        struct conn *c = open_conn(EPOLLIN);
        poke(c->peer);
        n += deliveries_of(c, 50);
        if (i & 1)
            del(c->fd);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    stop = 1;
    pthread_join(t, 0);
    say("correct; events %d", n);
    hold();
}
