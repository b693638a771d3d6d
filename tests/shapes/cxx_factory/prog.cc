// CORRECT C++: the constructor registers the object; a factory gives it out; the destructor removes and
// closes
#include "t.h"
struct Conn {
    int fd, peer;
    char pad[64];
    Conn();
    ~Conn();
};
NI Conn::Conn() {
    int s[2];
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s);
    fd = s[0];
    peer = s[1];
    ctl(EPOLL_CTL_ADD, fd, EPOLLIN, this);
}
NI Conn::~Conn() {
    ctl(EPOLL_CTL_DEL, fd, 0, 0);
    close(fd);
    close(peer);
    memset(pad, 0x5a, sizeof pad);
    asm volatile("" ::: "memory");
}
NI Conn *make() {
    return new Conn;
}
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 30; i++) {
        Conn *c = make();
        write(c->peer, "x", 1);
        epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++)
            n += e[j].data.ptr == c;
        delete c;
    }
    say("correct; events %d", n);
    hold();
}
