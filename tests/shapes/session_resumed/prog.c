// CORRECT: a session outlives its connection: its socket is closed; the client comes back on a new connection, whose
// descriptor is handed to the session by MOD; then 3,000 messages, each read
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int r = 0; r < 3; r++) {
        struct conn *s = open_conn(EPOLLIN);
        poke(s->peer);
        n += deliveries_of(s, 50);
        take(s->fd);
        close(s->fd);
        close(s->peer);
        struct epoll_event e[4];
        wait_ms(5, e, 4);
        struct conn *c = open_conn(EPOLLIN); /* it comes back */
        poke(c->peer);
        n += deliveries_of(c, 50);
        take(c->fd);
        s->fd = c->fd;
        s->peer = c->peer;
        ctl(EPOLL_CTL_MOD, s->fd, EPOLLIN, s);
        conn_destroy(c);
        for (int i = 0; i < 3000; i++) {
            poke(s->peer);
            n += deliveries_of(s, 50);
            take(s->fd);
        }
        end_conn(s);
    }
    say("correct; events %d", n);
    hold();
}
