// CORRECT shutdown: close(epoll fd) ends every registration; then slots are destroyed, fds closed last. Then
// a new loop with the same number.
#include "t.h"
int main(void) {
    ready();
    int n = 0;
    for (int r = 0; r < 3; r++) {
        EP = epoll_create1(EPOLL_CLOEXEC);
        struct conn *c[8];
        for (int i = 0; i < 8; i++) {
            c[i] = conn_create();
            pairup(c[i]);
            ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN, c[i]);
            write(c[i]->peer, "x", 1);
        }
        struct epoll_event e[16];
        n += wait_ms(50, e, 16);
        close(EP);
        for (int i = 0; i < 8; i++) {
            int f = c[i]->fd, p = c[i]->peer;
            conn_destroy(c[i]);
            close(f);
            close(p);
        }
        usleep(50000);
    }
    say("correct; events %d", n);
    hold();
}
