// BUG: epoll_pwait2 and epoll_pwait deliver for a freed slot
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    struct timespec ts = {0, 50000000};
    for (int i = 0; i < 6; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        int f = c->fd, p = c->peer;
        conn_destroy(c);
        write(p, "x", 1);
        struct epoll_event e[4];
        int k = i & 1 ? epoll_pwait2(EP, e, 4, &ts, 0) : epoll_pwait(EP, e, 4, 50, 0);
        for (int j = 0; j < k; j++)
            if (e[j].data.ptr == c)
                stale++;
        close(f);
        close(p);
    }
    say("bug; stale %d", stale);
    hold();
}
