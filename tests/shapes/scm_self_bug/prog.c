// BUG: the descriptor is in flight in a socket of the program itself (SCM_RIGHTS) while it is closed here and
// the slot destroyed; events still come
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
    int out, in;
    makepair(&out, &in);
    ready();
    int stale = 0;
    for (int i = 0; i < 5; i++) {
        struct conn *c = open_conn(EPOLLIN);
        int peer = c->peer;
        send_fd(out, c->fd);
        close(c->fd);
        conn_destroy(c);
        poke(peer);
        stale += deliveries_of(c, 50);
        close(receive_fd(in));
        close(peer);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
