// BUG in the forked workers: freed while registered; watch --exe must see it, watch --pid MASTER should at
// least not say that all is well
#include "t.h"
static int work(void) {
    int stale = 0;
    EP = epoll_create1(EPOLL_CLOEXEC);
    usleep(1500000);
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        int f = c->fd, p = c->peer;
        conn_destroy(c);
        write(p, "x", 1);
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++)
            if (e[j].data.ptr == c)
                stale++;
        close(f);
        close(p);
        usleep(5000);
    }
    usleep(500000);
    return stale;
}
int main(void) {
    ready();
    pid_t p[3];
    int st, n = 0;
    for (int i = 0; i < 3; i++)
        if (!(p[i] = fork()))
            _exit(work());
    for (int i = 0; i < 3; i++) {
        waitpid(p[i], &st, 0);
        n += WEXITSTATUS(st);
    }
    say("bug in children; stale %d", n);
    hold();
}
