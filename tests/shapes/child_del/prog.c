// BUG (libtorrent #775, OpenSmalltalk #550 shape): the child DELs the parent's registration through the
// shared epoll fd; parent's own DEL then fails with ENOENT
#include "t.h"
int main(void) {
    EP = epoll_create1(0);
    ready();
    int enoent = 0, lost = 0;
    for (int i = 0; i < 3; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        pid_t p = fork();
        if (!p) {
            ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
            _exit(0);
        }
        waitpid(p, 0, 0);
        write(c->peer, "x", 1);
        struct epoll_event e[4];
        if (wait_ms(30, e, 4) == 0)
            lost++;
        if (ctl(EPOLL_CTL_DEL, c->fd, 0, 0) && errno == ENOENT)
            enoent++;
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
    }
    say("bug in the child; ENOENT %d, lost events %d; slots never freed while registered", enoent, lost);
    hold();
}
