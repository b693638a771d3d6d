// CORRECT proxy: one session object, two descriptors (client, upstream), the same userdata pointer for both
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        pairup(c);
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        c->up = s[0];
        c->uppeer = s[1];
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        ctl(EPOLL_CTL_ADD, c->up, EPOLLIN, c);
        if (write(c->peer, "x", 1) != 1 || write(c->uppeer, "y", 1) != 1)
            abort();
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        char b;
        for (int j = 0; j < k; j++)
            n++;
        read(c->fd, &b, 1);
        read(c->up, &b, 1);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        ctl(EPOLL_CTL_DEL, c->up, 0, 0);
        close(c->fd);
        close(c->up);
        close(c->peer);
        close(c->uppeer);
        conn_destroy(c);
    }
    say("correct; events %d", n);
    hold();
}
