// CORRECT: a process that shares the descriptor table without being a thread removes or closes; then the slot
// is destroyed
#include "conns.h"
#include <sched.h>
static pid_t share_files(void) { // a process of its own memory with the same table of descriptors
    return syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
}
int main(void) {
    signal(SIGPIPE, SIG_IGN);
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
            if (i & 1)
                del(fd);
            close(fd);
            _exit(0);
        }
        waitpid(p, 0, 0);
        conn_destroy(c);
        if (write(peer, "x", 1) == 1)
            abort();
        stale += deliveries_of(c, 20);
        close(peer);
    }
    say("correct; events %d, after the end %d", n, stale);
    hold();
}
