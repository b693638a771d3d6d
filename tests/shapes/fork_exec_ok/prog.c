// CORRECT: server spawns helpers (fork+exec, CLOEXEC everywhere) all the time; meanwhile close without DEL +
// destroy by the loop itself: no stale event possible once exec is done; correct order
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, stale = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        struct epoll_event e[4];
        write(c->peer, "x", 1);
        n += wait_ms(50, e, 4);
        pid_t p = fork();
        if (!p) {
            execl("/bin/true", "true", (char *)0);
            _exit(1);
        }
        waitpid(p, 0, 0);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
        if (wait_ms(2, e, 4))
            stale++;
    }
    say("correct; events %d stale %d", n, stale);
    hold();
}
