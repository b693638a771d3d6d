// CORRECT: the pool is in memory that two processes share: the acceptor creates and sends the descriptor, the worker
// registers, serves, removes, closes and gives back
#define NOPOOL
#include "conns.h"
struct shm {
    pthread_mutex_t lock;
    struct conn slots[64], *freelist;
    int used;
} *shm;
NI struct conn *shm_create(void) {
    pthread_mutex_lock(&shm->lock);
    struct conn *c = shm->freelist;
    if (c)
        shm->freelist = c->next;
    else
        c = &shm->slots[shm->used++];
    pthread_mutex_unlock(&shm->lock);
    return c;
}
NI void shm_destroy(struct conn *c) {
    pthread_mutex_lock(&shm->lock);
    c->next = shm->freelist;
    shm->freelist = c;
    pthread_mutex_unlock(&shm->lock);
}
static void send_conn(int to, struct conn *c, int fd) {
    char control[CMSG_SPACE(4)] = {0};
    struct iovec v = {&c, sizeof c};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(4);
    memcpy(CMSG_DATA(h), &fd, 4);
    sendmsg(to, &m, 0);
}
static char channel_tag;
static void worker(int from) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    add(from, EPOLLIN, &channel_tag);
    for (;;) {
        struct epoll_event e[8];
        int k = wait_ms(100, e, 8);
        for (int j = 0; j < k; j++) {
            if (e[j].data.ptr == &channel_tag) {
                struct conn *c;
                char control[CMSG_SPACE(4)];
                struct iovec v = {&c, sizeof c};
                struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
                if (recvmsg(from, &m, MSG_CMSG_CLOEXEC) <= 0)
                    _exit(0);
                memcpy(&c->fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), 4);
                add(c->fd, EPOLLIN, c);
            } else {
                struct conn *c = e[j].data.ptr;
                char b;
                read(c->fd, &b, 1);
#ifdef TWIN
                int fd = c->fd;
                shm_destroy(c);
                epoll_wait(EP, e + j + 1, 8 - k > 0 ? 8 - k : 1, 0);
                close(fd);
#else
                del(c->fd);
                close(c->fd);
                shm_destroy(c);
#endif
            }
        }
    }
}
int main(void) {
    shm = mmap(0, sizeof *shm, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a), pthread_mutexattr_setpshared(&a, 1), pthread_mutex_init(&shm->lock, &a);
    ready();
    int channel[2];
    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel);
    pid_t p = fork();
    if (!p)
        close(channel[0]), worker(channel[1]);
    close(channel[1]);
    usleep(300000);
    int mine = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < 150; i++) {
        struct conn *c = shm_create();
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s);
        write(s[1], "x", 1);
        send_conn(channel[0], c, s[0]);
        close(s[0]);
        struct epoll_event e;
        epoll_wait(mine, &e, 1, 1);
        close(s[1]);
    }
    close(channel[0]);
    waitpid(p, 0, 0);
    say("correct");
    hold();
}
