// BUG at once: the program executes itself; the very first thing that its second life does is the bug, once
#include "conns.h"
int main(int argc, char **argv) {
    if (argc == 1) {
        ready();
        execl("/proc/self/exe", argv[0], "second", (char *)0);
        abort();
    }
    EP = epoll_create1(EPOLL_CLOEXEC);
    struct conn *c = open_conn(EPOLLIN);
    poke(c->peer);
    conn_destroy(c);
    int stale = deliveries_of(c, 50);
    say("bug; stale deliveries %d", stale);
    hold();
    hold();
}
