// CORRECT C++: userdata is an operation on the stack of who waits (an awaiter): its constructor arms the one-shot
// registration by MOD or ADD, its destructor leaves it disarmed
#define NOPOOL
#include "t.h"
static void makepair(int *mine, int *other) {
    int s[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s))
        abort();
    *mine = s[0];
    *other = s[1];
}
static void poke(int fd) {
    if (write(fd, "x", 1) != 1)
        abort();
}
static void take(int fd) {
    char b;
    if (read(fd, &b, 1) != 1)
        abort();
}
static void add(int fd, unsigned events, void *data) {
    if (ctl(EPOLL_CTL_ADD, fd, events, data))
        abort();
}
static void del(int fd) {
    if (ctl(EPOLL_CTL_DEL, fd, 0, 0))
        abort();
}
struct Op {
    int fd, done;
    NI Op(int fd, bool first) : fd(fd), done(0) {
        if (ctl(first ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, this))
            abort();
    }
    NI ~Op() {
        done = 2;
        asm volatile("" ::"r"(this) : "memory");
    }
};
static int n;
NI static void await(int fd, bool first) {
    Op op(fd, first);
    struct epoll_event e[4];
    int k = wait_ms(500, e, 4);
    for (int i = 0; i < k; i++, n++)
        ((Op *)e[i].data.ptr)->done = 1;
    if (!op.done)
        abort();
}
NI static void deeper(int fd, int depth) {
    volatile char pad[256];
    pad[depth] = 1;
    if (depth)
        deeper(fd, depth - 1);
    else
        await(fd, false);
    pad[depth + 1] = 2;
}
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 20; i++) {
        int fd, peer;
        makepair(&fd, &peer);
        poke(peer);
        await(fd, true);
        take(fd);
        for (int j = 0; j < 4; j++) {
            struct epoll_event e[4];
            wait_ms(1, e, 4);
            poke(peer);
            deeper(fd, j);
            take(fd);
        }
        del(fd);
        close(fd);
        close(peer);
    }
    say("correct; events %d", n);
    hold();
}
