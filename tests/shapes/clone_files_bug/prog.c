// BUG: a process that shares the descriptor table duplicates the descriptor there; closed and destroyed here:
// still registered
#include "conns.h"
#include <sched.h>
static pid_t share_files(void) { // a process of its own memory with the same table of descriptors
    return syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, stale = 0;
    for (int i = 0; i < 10; i++) {
        struct conn *c = open_conn(EPOLLIN);
        poke(c->peer);
        n += deliveries_of(c, 50);
        take(c->fd);
        int fd = c->fd, peer = c->peer;
        pid_t p = share_files();
        if (!p) {
            dup2(fd, 100);
            _exit(0);
        }
        waitpid(p, 0, 0);
        close(fd);
        conn_destroy(c);
        poke(peer);
        stale += deliveries_of(c, 20);
        close(peer);
        close(100);
    }
    say("bug; events %d, stale %d", n, stale);
    hold();
}
