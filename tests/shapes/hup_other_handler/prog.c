// CORRECT: the loop answers EPOLLIN by on_readable(), which the profile names, and EPOLLHUP by ending the connection
#include "conns.h"
NI void on_readable(struct conn *c) {
    take(c->fd);
}
NI void on_hangup(struct conn *c) {
    end_conn(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 40; i++) {
        struct conn *c = open_conn(EPOLLIN | EPOLLRDHUP);
        poke(c->peer);
        for (int turn = 0; turn < 2; turn++) {
            struct epoll_event e[4];
            int k = wait_ms(200, e, 4);
            for (int j = 0; j < k; j++, n++)
                if (e[j].events & (EPOLLHUP | EPOLLRDHUP))
                    on_hangup(e[j].data.ptr);
                else
                    on_readable(e[j].data.ptr);
            if (!turn)
                shutdown(c->peer, SHUT_RDWR);
        }
    }
    say("correct; events %d", n);
    hold();
}
