// CORRECT: a forked helper (no exec) holds everything, epoll fd included; the parent does DEL, close, destroy
// in order; the child closes its epoll fd and exits later
#include "t.h"
int main(void) {
    EP = epoll_create1(0);
    ready();
    int n = 0, stale = 0;
    for (int i = 0; i < 4; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        pid_t p = fork();
        if (!p) {
            close(EP);
            usleep(300000);
            _exit(0);
        }
        write(c->peer, "x", 1);
        struct epoll_event e[4];
        n += wait_ms(50, e, 4);
        int f = c->fd, q = c->peer;
        ctl(EPOLL_CTL_DEL, f, 0, 0);
        close(f);
        conn_destroy(c);
        write(q, "x", 1);
        if (wait_ms(20, e, 4))
            stale++;
        close(q);
        waitpid(p, 0, 0);
    }
    say("correct; events %d stale %d", n, stale);
    hold();
}
