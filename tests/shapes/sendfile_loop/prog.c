// CORRECT: a file streamer: level-triggered EPOLLOUT, each event answered by sendfile()/write(), hundreds of
// batches in a row, nothing is read
#include "t.h"
#include <sys/sendfile.h>
static int sock;
static void *drain(void *a) {
    char b[65536];
    while (read(sock, b, sizeof b) > 0)
        ;
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int f = memfd_create("f", 0);
    ftruncate(f, 1 << 20);
    ready();
    int n = 0;
    struct conn *c = conn_create();
    pairup(c);
    sock = c->peer;
    pthread_t t;
    pthread_create(&t, 0, drain, 0);
    ctl(EPOLL_CTL_ADD, c->fd, EPOLLOUT, c);
    for (int i = 0; i < 20000; i++) {
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        if (k == 1) {
            n++;
            off_t o = 0;
            sendfile(c->fd, f, &o, 16384);
        }
    }
    ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
    shutdown(c->fd, SHUT_RDWR);
    pthread_join(t, 0);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
    say("correct; writable events, each answered: %d", n);
    hold();
}
