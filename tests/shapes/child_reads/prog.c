// CORRECT: a supervisor watches a socket and has its helper, a forked process that shares it, read each message: it
// sends it a byte and waits for its answer before it waits again
#include "conns.h"
static int stop, w;
static void *writer(void *arg) {
    while (!__atomic_load_n(&stop, 5)) {
        send(w, "x", 1, MSG_DONTWAIT);
        usleep(30);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    struct conn *c = conn_create();
    pairup(c);
    int mine, his;
    makepair(&mine, &his);
    ready();
    if (!fork()) {
        close(mine);
        close(c->peer);
        char b[16];
        while (read(his, b, 1) == 1) {
            recv(c->fd, b, sizeof b, MSG_DONTWAIT);
            write(his, "k", 1);
        }
        _exit(0);
    }
    close(his);
    add(c->fd, EPOLLIN, c);
    w = c->peer;
    pthread_t t;
    pthread_create(&t, 0, writer, 0);
    long n = 0;
    for (double end = seconds() + 8; seconds() < end;) {
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        for (int i = 0; i < k; i++, n++) {
            poke(mine);
            take(mine);
        }
    }
    stop = 1;
    pthread_join(t, 0);
    del(c->fd);
    close(mine);
    wait(0);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
    say("correct; events %ld", n);
    hold();
}
