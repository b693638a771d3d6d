// CORRECT: a proxy's session has two descriptors; the client's is closed first (that ends its registration), and the
// upstream one goes on for thousands of events, each read, and is then closed too; then the session is given back
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = open_conn(EPOLLIN);
        makepair(&c->up, &c->uppeer);
        add(c->up, EPOLLIN, c);
        close(c->fd);
        for (int turn = 0; turn < 3000; turn++) {
            poke(c->uppeer);
            n += deliveries_of(c, 100);
            take(c->up);
        }
        del(c->up);
        close(c->up);
        close(c->peer);
        close(c->uppeer);
        conn_destroy(c);
    }
    say("correct; events %d", n);
    hold();
}
