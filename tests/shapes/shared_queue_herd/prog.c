// CORRECT: two processes wait for the same socket, each in an instance of its own; one of the two reads each message,
// the other finds nothing (EAGAIN), as preforked workers on one listener do
#include "conns.h"
int main(void) {
    int s[2], turn[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, turn))
        abort();
    pid_t p = fork();
    if (!p) { /* takes every message, a little later than the other looks */
        close(turn[0]);
        char b;
        while (read(turn[1], &b, 1) == 1) {
            read(s[0], &b, 1);
            write(turn[1], "y", 1);
        }
        _exit(0);
    }
    close(turn[1]);
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = conn_create();
    c->fd = s[0];
    add(c->fd, EPOLLIN, c);
    int n = 0;
    char b;
    for (double end = seconds() + 8; seconds() < end; n++) {
        write(s[1], "x", 1);
        if (deliveries_of(c, 100) != 1)
            abort();
        poke(turn[0]); /* the other is quicker */
        take(turn[0]);
        if (read(c->fd, &b, 1) != -1 || errno != EAGAIN)
            abort();
        usleep(200);
    }
    close(turn[0]);
    waitpid(p, 0, 0);
    del(c->fd);
    close(c->fd);
    conn_destroy(c);
    say("correct; events %d", n);
    hold();
}
