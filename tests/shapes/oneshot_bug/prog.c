// BUG (pjsip #3158 shape): after the callback freed the key, the poll loop re-arms it: MOD with the freed
// pointer (fd still open through a dup), then it fires
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0, modfail = 0;
    for (int i = 0; i < 10; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLONESHOT, c);
        write(c->peer, "x", 1);
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++) {
            struct conn *d = e[j].data.ptr;
            int fd = d->fd;
            conn_destroy(d); /* the callback */
            if (i & 1)
                close(fd);
            if (ctl(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, d))
                modfail++; /* the loop */
            if (!(i & 1)) {
                int k2 = wait_ms(20, e, 4);
                for (int z = 0; z < k2; z++)
                    if (e[z].data.ptr == d)
                        stale++;
                close(fd);
            }
        }
        close(c->peer);
    }
    say("bug; freed while registered 10, stale deliveries %d, failed MOD (EBADF) %d", stale, modfail);
    hold();
}
