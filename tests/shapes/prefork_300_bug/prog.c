// BUG in the last of 300 forked workers, watched by --exe: it frees connections that are registered
#include "conns.h"
int main(void) {
    ready();
    for (int i = 0; i < 299; i++)
        if (!fork()) {
            sleep(5);
            _exit(0);
        }
    sleep(2);
    if (fork()) {
        while (wait(0) > 0)
            ;
        return 0;
    }
    EP = epoll_create1(EPOLL_CLOEXEC);

    int stale = 0;
    for (int i = 0; i < 10; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int fd = c->fd, peer = c->peer;
        poke(peer);
        deliveries_of(c, 50);
        conn_destroy(c);
        stale += deliveries_of(c, 50);
        del(fd);
        close(fd);
        close(peer);
    }
    say("bug; stale %d", stale);
    hold();
}
