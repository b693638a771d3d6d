// CORRECT: upstream objects are long-lived: the fd is closed when idle and opened anew at need (here after 36
// s)
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c[4];
    int n = 0;
    for (int i = 0; i < 4; i++)
        c[i] = conn_create();
    for (int r = 0; r < 2; r++) {
        for (int i = 0; i < 4; i++) {
            pairup(c[i]);
            ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN, c[i]);
            write(c[i]->peer, "x", 1);
            struct epoll_event e[4];
            n += wait_ms(50, e, 4);
            ctl(EPOLL_CTL_DEL, c[i]->fd, 0, 0);
            close(c[i]->fd);
            close(c[i]->peer);
        }
        usleep(r ? 1000 : 36000000);
    }
    for (int i = 0; i < 4; i++)
        conn_destroy(c[i]);
    say("correct; events %d", n);
    hold();
}
