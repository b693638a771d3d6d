// CORRECT: 20 connections exist before the attach; afterwards each gets an event and ends in order; numbers
// and slots are reused
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    struct conn *c[20];
    for (int i = 0; i < 20; i++) {
        c[i] = conn_create();
        pairup(c[i]);
        ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN, c[i]);
    }
    ready();
    int n = 0;
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 20; i++) {
            write(c[i]->peer, "x", 1);
            struct epoll_event e[4];
            n += wait_ms(50, e, 4);
            if (r == 0)
                ctl(EPOLL_CTL_DEL, c[i]->fd, 0, 0);
            close(c[i]->fd);
            close(c[i]->peer);
            conn_destroy(c[i]);
            c[i] = conn_create();
            pairup(c[i]);
            ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN, c[i]);
        }
    say("correct; events %d", n);
    hold();
}
