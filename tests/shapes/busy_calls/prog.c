// CORRECT: level-triggered events by the ten thousand, each answered: by recvmsg, recvmmsg, readv, splice,
// recvfrom, through a duplicate, or by a byte of many
#define NOPOOL
#include "conns.h"
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    free(c);
}
enum { KINDS = 7, ROUNDS = 8000 };
static int nul[2], copy;
static void answer(struct conn *c) {
    char b[16];
    struct iovec v = {b, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    struct mmsghdr many = {.msg_hdr = m};
    ssize_t got = 1;
    switch (c->gen) {
    case 0:
        got = recvmsg(c->fd, &m, 0);
        break;
    case 1:
        got = recvmmsg(c->fd, &many, 1, 0, 0);
        break;
    case 2:
        got = readv(c->fd, &v, 1);
        break;
    case 3:
        got = splice(c->fd, 0, nul[1], 0, 1, 0);
        take(nul[0]);
        break;
    case 4:
        got = recvfrom(c->fd, b, 1, MSG_DONTWAIT, 0, 0);
        break;
    case 5:
        got = read(copy, b, 1);
        break;
    case 6:
        got = read(c->fd, b, 1);
        break;
    }
    if (got != 1)
        abort();
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    if (pipe2(nul, O_CLOEXEC))
        abort();
    ready();
    struct conn *c[KINDS];
    long n = 0;
    for (int i = 0; i < KINDS; i++) {
        c[i] = conn_create();
        c[i]->gen = i;
        pairup(c[i]);
        add(c[i]->fd, EPOLLIN, c[i]);
    }
    copy = fcntl(c[5]->fd, F_DUPFD_CLOEXEC, 0);
    for (int r = 0; r < ROUNDS; r++) {
        char many[100] = "";
        for (int i = 0; i < 6; i++)
            poke(c[i]->peer);
        if (r % 100 == 0)
            write(c[6]->peer, many, sizeof many);
        struct epoll_event e[16];
        int k = wait_ms(50, e, 16);
        for (int j = 0; j < k; j++, n++)
            answer(e[j].data.ptr);
    }
    for (int i = 0; i < KINDS; i++) {
        del(c[i]->fd);
        close(c[i]->fd);
        close(c[i]->peer);
        conn_destroy(c[i]);
    }
    say("correct; events, each answered: %ld", n);
    hold();
}
