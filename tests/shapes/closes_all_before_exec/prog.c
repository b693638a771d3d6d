// CORRECT: a server that had 60 connections and ended them in order starts its upgrade: it closes every number from 3
// to 255, most of which are not open, and executes the new program; it has one thread
#include "conns.h"
int main(int argc, char **argv) {
    if (argc > 1) {
        usleep(500000);
        say("correct; second life");
        hold();
        return 0;
    }
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    static struct conn *c[60];
    int n = 0;
    for (int i = 0; i < 60; i++) {
        c[i] = open_conn(EPOLLIN);
        poke(c[i]->peer);
    }
    struct epoll_event e[64];
    n += wait_ms(50, e, 64);
    for (int i = 0; i < 60; i++) {
        close(c[i]->fd);
        close(c[i]->peer);
        conn_destroy(c[i]);
    }
    n += wait_ms(10, e, 64);
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    execl("/proc/self/exe", argv[0], "again", (char *)0);
    abort();
}
