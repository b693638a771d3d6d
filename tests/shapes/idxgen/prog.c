// BUG: userdata = generation << 32 | index; profile kind pointer (the only one that watch takes)
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        pairup(c);
        uint64_t u = c->gen << 32 | (uint64_t)(c - slots + 5000);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, (void *)u);
        conn_destroy(c);
        write(c->peer, "x", 1);
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++)
            if (e[j].data.u64 == u)
                stale++;
        close(c->fd);
        close(c->peer);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
