// BUG in C++: userdata is the second base of the object (offset 16, the profile says so); deleted while
// registered
#include "t.h"
struct Named {
    virtual ~Named() {
    }
    long id = 0;
};
struct Pollable {
    virtual ~Pollable() {
    }
    virtual int handle() = 0;
    int fd = -1;
};
struct Conn : Named, Pollable {
    Conn();
    ~Conn() override;
    int handle() override;
    int peer = -1;
};
NI Conn::Conn() {
    int s[2];
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s);
    fd = s[0];
    peer = s[1];
}
NI Conn::~Conn() {
    asm volatile("" ::: "memory");
}
int Conn::handle() {
    char b;
    return read(fd, &b, 1);
}
NI Conn *make() {
    return new Conn;
}
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, stale = 0;
    for (int i = 0; i < 20; i++) {
        Conn *c = make();
        Pollable *p = c;
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, p);
        write(c->peer, "x", 1);
        epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++)
            n += static_cast<Pollable *>(e[j].data.ptr)->handle();
        int fd = c->fd, peer = c->peer;
        delete p;
        write(peer, "x", 1);
        k = wait_ms(10, e, 4);
        for (int j = 0; j < k; j++)
            stale += e[j].data.ptr == p;
        close(fd);
        close(peer);
    }
    say("bug; events %d, stale %d", n, stale);
    hold();
}
