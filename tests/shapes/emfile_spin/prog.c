// BUG: no descriptor is left: accept4() says EMFILE in every round, and the listener stays ready
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    struct sockaddr_in at;
    struct conn *l = conn_create();
    l->fd = listen_local(&at);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ready();
    add(l->fd, EPOLLIN, l);
    struct rlimit none = {.rlim_cur = client + 1, .rlim_max = 4096};
    setrlimit(RLIMIT_NOFILE, &none);
    connect(client, (struct sockaddr *)&at, sizeof at);
    long n = 0, refused = 0;
    for (double end = seconds() + 3; seconds() < end;) {
        struct epoll_event e[4];
        if (wait_ms(50, e, 4) == 1) {
            n++;
            refused += accept4(l->fd, 0, 0, SOCK_CLOEXEC) < 0 && errno == EMFILE;
        }
    }
    say("bug; events %ld, EMFILE %ld", n, refused);
    hold();
}
