// CORRECT C++: virtual destructor; destroy = "~Conn" (plain name); DEL and close before delete. D0 calls
// D1/D2
#include "t.h"
struct Base {
    virtual ~Base();
    int fd = -1, peer = -1;
};
struct Conn : Base {
    ~Conn() override;
    char pad[64];
};
NI Base::~Base() {
    asm volatile("");
}
NI Conn::~Conn() {
    memset(pad, 0x5a, sizeof pad);
    asm volatile("");
}
NI Conn *make() {
    return new Conn;
}
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 20; i++) {
        Conn *c = make();
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        c->fd = s[0];
        c->peer = s[1];
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        Base *b = c;
        delete b;
    }
    say("correct");
    hold();
}
