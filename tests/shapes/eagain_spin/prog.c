// BUG: registered for input and output all the time; each event is taken for input: read() says EAGAIN
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    long n = 0;
    struct conn *c = conn_create();
    pairup(c);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    add(c->fd, EPOLLIN | EPOLLOUT, c);
    for (double end = seconds() + 3; seconds() < end;) {
        struct epoll_event e[8];
        int k = wait_ms(50, e, 8);
        for (int j = 0; j < k; j++, n++) {
            char b[64];
            if (read(c->fd, b, sizeof b) > 0)
                abort();
        }
    }
    end_conn(c);
    say("bug; events %ld", n);
    hold();
}
