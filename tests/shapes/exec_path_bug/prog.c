// BUG at once: as exec_self_bug, but the program executes itself by its path, as a server does that is
// upgraded in place
#include "conns.h"
int main(int argc, char **argv) {
    if (argc == 1) {
        char path[4096] = "";
        if (readlink("/proc/self/exe", path, sizeof path - 1) < 0)
            abort();
        ready();
        execl(path, argv[0], "second", (char *)0);
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
