// BUG: as fork_child, but the child was forked BEFORE the attach (inherited listener-like fd): registration
// predates too
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int stale = 0;
    struct conn *c[3];
    for (int i = 0; i < 3; i++) {
        c[i] = conn_create();
        pairup(c[i]);
        ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN, c[i]);
    }
    pid_t p = fork();
    if (!p) {
        close(1);
        pause();
        _exit(0);
    }
    ready();
    for (int i = 0; i < 3; i++) {
        int peer = c[i]->peer;
        close(c[i]->fd);
        conn_destroy(c[i]);
        usleep(100000);
        write(peer, "x", 1);
        struct epoll_event e[4];
        for (int z = 0; z < 3; z++) {
            int k = wait_ms(50, e, 4);
            for (int j = 0; j < k; j++)
                if (e[j].data.ptr == c[i])
                    stale++;
            usleep(1000);
        }
    }
    say("bug; stale deliveries %d", stale);
    hold();
    kill(p, 9);
    waitpid(p, 0, 0);
}
