// BUG: the fd is passed by SCM_RIGHTS to another process, closed here without DEL, slot freed; events still
// come
#include "t.h"
static void sendfd(int s, int fd) {
    char b = 0, cb[CMSG_SPACE(4)];
    struct iovec v = {&b, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = cb, .msg_controllen = sizeof cb};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = CMSG_LEN(4);
    memcpy(CMSG_DATA(h), &fd, 4);
    if (sendmsg(s, &m, 0) < 0)
        abort();
}
static void recvfd(int s) {
    char b, cb[CMSG_SPACE(4)];
    struct iovec v = {&b, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = cb, .msg_controllen = sizeof cb};
    recvmsg(s, &m, 0);
}
int main(void) {
    int u[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, u);
    pid_t p = fork();
    if (!p) {
        close(1);
        for (int i = 0; i < 3; i++)
            recvfd(u[1]);
        pause();
    }
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 3; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        sendfd(u[0], c->fd);
        usleep(20000);
        int peer = c->peer;
        close(c->fd);
        conn_destroy(c);
        usleep(50000);
        write(peer, "x", 1);
        struct epoll_event e[4];
        for (int z = 0; z < 3; z++) {
            int k = wait_ms(50, e, 4);
            for (int j = 0; j < k; j++)
                if (e[j].data.ptr == c)
                    stale++;
            usleep(1000);
        }
    }
    say("bug; stale deliveries %d", stale);
    hold();
    kill(p, 9);
    waitpid(p, 0, 0);
}
