// CORRECT: descriptors are passed to another thread of the same program as SCM_RIGHTS; each is removed before
#include "conns.h"
static void send_fd(int to, int fd) {
    char b = 0, room[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec v = {&b, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(h), &fd, sizeof fd);
    if (sendmsg(to, &m, 0) < 0)
        abort();
}
static int receive_fd(int from) {
    int fd;
    char b, room[CMSG_SPACE(sizeof fd)];
    struct iovec v = {&b, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    if (recvmsg(from, &m, MSG_CMSG_CLOEXEC) != 1)
        abort();
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int out, in, n = 0;
    makepair(&out, &in);
    ready();
    for (int i = 0; i < 20; i++) {
        struct conn *c = open_conn(EPOLLIN);
        poke(c->peer);
        n += deliveries_of(c, 50);
        del(c->fd);
        send_fd(out, c->fd);
        close(c->fd);
        int peer = c->peer;
        conn_destroy(c);
        struct conn *d = conn_create();
        d->fd = receive_fd(in);
        d->peer = peer;
        add(d->fd, EPOLLIN, d);
        n += deliveries_of(d, 50);
        end_conn(d);
    }
    say("correct; events %d", n);
    hold();
}
