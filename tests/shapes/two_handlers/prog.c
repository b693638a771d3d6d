// CORRECT: on_read() for input and on_write() for output, the profile names on_read: what has been written ends in
// on_write()
#include "conns.h"
NI void on_read(struct conn *c) {
    take(c->fd);
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(EP, EPOLL_CTL_MOD, c->fd, &e))
        abort();
}
NI void on_write(struct conn *c) {
    write(c->fd, "y", 1);
    end_conn(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 40; i++) {
        poke(open_conn(EPOLLIN)->peer);
        for (int turn = 0; turn < 2; turn++) {
            struct epoll_event e[4];
            int k = wait_ms(200, e, 4);
            for (int j = 0; j < k; j++)
                if (e[j].events & EPOLLOUT)
                    on_write(e[j].data.ptr);
                else
                    on_read(e[j].data.ptr);
        }
    }
    say("correct");
    hold();
}
