// BUG: fd in two epoll instances, DEL from the one that was added last only; slot destroyed; the other
// instance delivers later
#include "t.h"
int main(void) {
    int a = epoll_create1(EPOLL_CLOEXEC), b = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        pairup(c);
        int f = c->fd, p = c->peer;
        EP = a;
        ctl(EPOLL_CTL_ADD, f, EPOLLIN, c);
        EP = b;
        ctl(EPOLL_CTL_ADD, f, EPOLLIN, c);
        ctl(EPOLL_CTL_DEL, f, 0, 0);
        conn_destroy(c);
        usleep(100000);
        if (i & 1) {
            write(p, "x", 1);
            struct epoll_event e[4];
            EP = a;
            int k = wait_ms(50, e, 4);
            for (int j = 0; j < k; j++)
                if (e[j].data.ptr == c)
                    stale++;
        }
        close(f);
        close(p);
    }
    say("bug; freed while registered in the other instance 5, stale %d", stale);
    hold();
}
