// CORRECT enough: orderly exit: stop polling, free all objects, close the epoll fd, exit (no DEL, fds closed
// by exit). No event can come: nobody waits any more
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c[10];
    int n = 0;
    for (int i = 0; i < 10; i++) {
        c[i] = conn_create();
        pairup(c[i]);
        ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN, c[i]);
        write(c[i]->peer, "x", 1);
    }
    struct epoll_event e[16];
    n = wait_ms(50, e, 16);
    close(EP);
    for (int i = 0; i < 10; i++)
        conn_destroy(c[i]);
    say("correct; events %d", n);
    return 0;
}
