// CORRECT: writable all the time, and each event is used: by writev, sendmsg, sendmmsg, splice out of a pipe,
// or sendto
#include "conns.h"
static int sock[5];
static void *drain(void *arg) {
    char b[4096];
    while (read(*(int *)arg, b, sizeof b) > 0)
        ;
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int full[2];
    if (pipe2(full, O_CLOEXEC))
        abort();
    ready();
    struct conn *c[5];
    pthread_t t[5];
    long n = 0;
    for (int i = 0; i < 5; i++) {
        c[i] = open_conn(EPOLLOUT);
        c[i]->up = i;
        sock[i] = c[i]->peer;
        pthread_create(&t[i], 0, drain, &sock[i]);
    }
    while (n < 40000) {
        struct epoll_event e[8];
        int k = wait_ms(50, e, 8);
        for (int j = 0; j < k; j++, n++) {
            struct conn *d = e[j].data.ptr;
            struct iovec v = {d->buf, 64};
            struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
            struct mmsghdr many = {.msg_hdr = m};
            if (d->up == 0)
                writev(d->fd, &v, 1);
            else if (d->up == 1)
                sendmsg(d->fd, &m, MSG_NOSIGNAL);
            else if (d->up == 2)
                sendmmsg(d->fd, &many, 1, 0);
            else if (d->up == 3) {
                poke(full[1]);
                splice(full[0], 0, d->fd, 0, 1, 0);
            } else
                sendto(d->fd, d->buf, 64, 0, 0, 0);
        }
    }
    for (int i = 0; i < 5; i++) {
        del(c[i]->fd);
        shutdown(c[i]->fd, SHUT_RDWR);
        pthread_join(t[i], 0);
        close(c[i]->fd);
        close(c[i]->peer);
        conn_destroy(c[i]);
    }
    say("correct; events, each answered: %ld", n);
    hold();
}
