// BUG: one thread destroys, another closes 50 ms later, while the loop waits: until then an event could come
#include "conns.h"
static int to_close[2];
static void *closer(void *arg) {
    int fd;
    while (read(to_close[0], &fd, sizeof fd) == sizeof fd) {
        usleep(50000);
        close(fd);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    if (pipe2(to_close, O_CLOEXEC))
        abort();
    ready();
    pthread_t t;
    pthread_create(&t, 0, closer, 0);
    int n = 0, later = 0;
    for (int i = 0; i < 10; i++) {
        struct conn *c = open_conn(EPOLLIN | EPOLLET);
        poke(c->peer);
        n += deliveries_of(c, 50);
        int fd = c->fd;
        conn_destroy(c);
        write(to_close[1], &fd, sizeof fd);
        later += deliveries_of(c, 100);
    }
    close(to_close[1]);
    pthread_join(t, 0);
    say("bug; events %d, freed while registered 10, later events %d", n, later);
    hold();
}
