// BUG: a proxy's session has two descriptors; upstream has hung up and nobody closes it, so that it is delivered in
// every round, while the client's is answered some hundred times a second
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
    struct conn *c = open_conn(EPOLLIN);
    makepair(&c->up, &c->uppeer);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    add(c->up, EPOLLIN | EPOLLRDHUP, c);
    close(c->uppeer); /* upstream ends */
    w = c->peer;
    pthread_t t;
    pthread_create(&t, 0, writer, 0);
    long n = 0, r = 0;
    for (double end = seconds() + 8; seconds() < end;) {
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        n += k;
        char b[16];
        r += read(c->fd, b, sizeof b) > 0; /* always the client's */
    }
    stop = 1;
    pthread_join(t, 0);
    del(c->up);
    close(c->up);
    end_conn(c);
    say("bug; events %ld, reads of the client %ld", n, r);
    hold();
}
