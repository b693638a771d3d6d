// CORRECT: dup2() puts another description over a registered fd: that ends the registration; then the slot is
// destroyed
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int nul = open("/dev/null", O_RDWR);
    ready();
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        if (i & 1)
            dup2(nul, c->fd);
        else
            dup3(nul, c->fd, O_CLOEXEC);
        conn_destroy(c);
        close(c->fd);
        close(c->peer);
    }
    say("correct");
    hold();
}
