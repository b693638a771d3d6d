// BUG: 600 connections are removed and closed, and their slots are never given back
#include "t.h"
static struct conn own[700];
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 600; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        if (i % 50 == 0)
            usleep(10000);
    }
    for (int i = 0; i < 50; i++)
        usleep(1000000);
    say("bug; leaked 600");
    hold();
}
