// CORRECT: three listeners are registered with the address of one static marker (not a slot); accepted
// connections are slots
#include "t.h"
#include <netinet/in.h>
#include <arpa/inet.h>
static int marker;
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int l[3];
    struct sockaddr_in a[3];
    for (int i = 0; i < 3; i++) {
        l[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        a[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        bind(l[i], (void *)&a[i], sizeof a[i]);
        socklen_t n = sizeof a[i];
        getsockname(l[i], (void *)&a[i], &n);
        listen(l[i], 9);
    }
    ready();
    for (int i = 0; i < 3; i++)
        ctl(EPOLL_CTL_ADD, l[i], EPOLLIN, &marker);
    int n = 0;
    for (int i = 0; i < 12; i++) {
        int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        connect(s, (void *)&a[i % 3], sizeof a[0]);
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++)
            if (e[j].data.ptr == &marker) {
                struct conn *c = conn_create();
                c->fd = accept4(l[i % 3], 0, 0, SOCK_CLOEXEC);
                ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
                ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
                close(c->fd);
                conn_destroy(c);
                n++;
            }
        close(s);
    }
    say("correct; accepted %d", n);
    hold();
}
