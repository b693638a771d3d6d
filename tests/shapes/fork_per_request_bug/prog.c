// BUG at its end: watched by --exe; a forking server: for each of 3,000 connections it forks a child, which answers and ends;
// up to 40 at a time; the parent removes, closes and
// gives back; afterwards ten connections are given back while they are registered
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, kids = 0;
    for (int i = 0; i < 3000; i++) {
        struct conn *c = open_conn(EPOLLIN);
        poke(c->peer);
        n += deliveries_of(c, 50);
        del(c->fd);
        if (!fork()) {
            take(c->fd);
            write(c->fd, "y", 1);
            _exit(0);
        }
        if (++kids > 40) {
            wait(0);
            kids--;
        }
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    while (wait(0) > 0)
        ;
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
