// BUG: EPOLLOUT is left on after the answer was written, on a connection in use: 100,000 events a second, of which the
// two hundred messages of the peer answer a few
#include "conns.h"
static int stop, w;
static void *writer(void *arg) {
    while (!__atomic_load_n(&stop, 5)) {
        write(w, "x", 1);
        usleep(5000);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = open_conn(EPOLLIN | EPOLLOUT);
    w = c->peer;
    pthread_t t;
    pthread_create(&t, 0, writer, 0);
    long n = 0, r = 0;
    for (double end = seconds() + 8; seconds() < end;) {
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        for (int i = 0; i < k; i++, n++)
            if (e[i].events & EPOLLIN) {
                take(c->fd);
                r++;
            }
    }
    stop = 1;
    pthread_join(t, 0);
    end_conn(c);
    say("bug; events %ld, reads %ld", n, r);
    hold();
}
