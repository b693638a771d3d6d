// CORRECT: a registered descriptor is redirected for a while (saved by dup, replaced by dup2) and restored by dup2: the
// registration, (description, number), is there all the time; removed before the end
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int saved = fcntl(c->fd, F_DUPFD_CLOEXEC, 0), null = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(null, c->fd);
        close(null);
        dup2(saved, c->fd);
        close(saved);
        poke(c->peer);
        n += deliveries_of(c, 100);
        take(c->fd);
#ifdef TWIN
        saved = dup(c->fd), close(c->fd), close(saved), close(c->peer), conn_destroy(c), close(c->fd);
#else
        end_conn(c);
#endif
    }
    say("correct; events %d", n);
    hold();
}
