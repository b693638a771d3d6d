// BUG: the peers have gone; EPOLLHUP is reported again and again, 20 times a second, and nobody ever closes
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 10; i++)
        close(open_conn(EPOLLIN | EPOLLRDHUP)->peer);
    int n = 0;
    for (double end = seconds() + 50; seconds() < end;) {
        struct epoll_event e[16];
        n += wait_ms(50, e, 16);
        usleep(50000);
    }
    say("bug; hang-ups reported %d", n);
    hold();
}
