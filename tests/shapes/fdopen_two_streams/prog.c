// CORRECT: a connection has two FILEs, one over its descriptor and one over a duplicate; its end closes both, one
// after the other, and gives the slot back, before the only thread waits again
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = open_conn(EPOLLIN);
        FILE *in = fdopen(c->fd, "r"), *out = fdopen(fcntl(c->fd, F_DUPFD_CLOEXEC, 0), "w");
        write(c->peer, "hello\n", 6);
        n += deliveries_of(c, 50);
        char line[64];
        if (fgets(line, sizeof line, in))
            fprintf(out, "200 %s", line);
        fclose(in);
        fclose(out);
        close(c->peer);
        conn_destroy(c);
        struct epoll_event e[4];
        if (wait_ms(5, e, 4))
            abort();
    }
    say("correct; events %d", n);
    hold();
}
