// CORRECT: another process takes duplicates of the connections' descriptors (pidfd_getfd); removed before closed
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int ask[2], answer[2];
    pipe(ask), pipe(answer);
    int self = getpid();
    pid_t other = fork();
    if (!other) {
        int from = syscall(SYS_pidfd_open, self, 0), fd;
        while (read(ask[0], &fd, 4) == 4 && fd >= 0) {
            fd = syscall(SYS_pidfd_getfd, from, fd, 0);
            write(answer[1], &fd, 4);
        }
        _exit(0);
    }
    ready();
    int n = 0, stale = 0, taken = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int fd = c->fd, peer = c->peer, got;
        write(ask[1], &fd, 4);
        read(answer[0], &got, 4);
        taken += got >= 0;
        poke(peer);
        n += deliveries_of(c, 100);
        take(fd);
#ifdef TWIN
        close(fd);
        conn_destroy(c);
        poke(peer);
        stale += deliveries_of(c, 100);
        close(peer);
#else
        end_conn(c);
#endif
    }
    int stop = -1;
    write(ask[1], &stop, 4);
    waitpid(other, 0, 0);
    say("correct; events %d, taken %d, stale %d", n, taken, stale);
    hold();
}
