// CORRECT: an acceptor loop; its listener's userdata is a pointer; every event is answered by accept4(); 3000
// connections one after the other
#include "t.h"
#include <netinet/in.h>
#include <arpa/inet.h>
static struct sockaddr_in a;
static volatile int got;
static void *client(void *x) {
    for (int i = 0; i < 3000; i++) {
        int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        connect(s, (void *)&a, sizeof a);
        while (got <= i)
            usleep(10);
        close(s);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    struct conn *l = conn_create();
    l->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    a = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    bind(l->fd, (void *)&a, sizeof a);
    socklen_t n = sizeof a;
    getsockname(l->fd, (void *)&a, &n);
    listen(l->fd, 99);
    ready();
    ctl(EPOLL_CTL_ADD, l->fd, EPOLLIN, l);
    pthread_t t;
    pthread_create(&t, 0, client, 0);
    while (got < 3000) {
        struct epoll_event e[4];
        if (wait_ms(50, e, 4) == 1) {
            int c = accept4(l->fd, 0, 0, SOCK_CLOEXEC);
            close(c);
            got++;
        }
    }
    pthread_join(t, 0);
    say("correct; accepted %d", got);
    hold();
}
