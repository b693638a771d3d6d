// CORRECT: a pipe's write end is level-triggered writable; each event is answered by tee() from another pipe into it; a
// reader thread drains it
#include "conns.h"
static int stop, r_end;
static void *reader(void *arg) {
    char b[4096];
    while (read(r_end, b, sizeof b) > 0)
        ;
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int src[2], out[2];
    pipe2(src, O_CLOEXEC);
    pipe2(out, O_CLOEXEC);
    write(src[1], "hello", 5);
    r_end = out[0];
    struct conn *c = conn_create();
    c->fd = out[1];
    add(c->fd, EPOLLOUT, c);
    pthread_t t;
    pthread_create(&t, 0, reader, 0);
    long n = 0, moved = 0;
    for (double end = seconds() + 8; seconds() < end;) {
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        for (int i = 0; i < k; i++, n++)
            moved += tee(src[0], out[1], 5, 0) > 0;
    }
    del(c->fd);
    close(c->fd);
    conn_destroy(c);
    pthread_join(t, 0);
    say("correct; events %ld, tees %ld", n, moved);
    hold();
}
