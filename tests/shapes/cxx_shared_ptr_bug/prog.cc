// BUG in C++: shared_ptr; the last reference goes on a worker, and the destructor forgets the registration;
// re-armed later
#include "t.h"
#include <memory>
#include <thread>
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
}
NI Conn::~Conn() {
    memset(pad, 0x5a, sizeof pad);
    asm volatile("" ::: "memory");
}
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, stale = 0;
    for (int i = 0; i < 20; i++) {
        auto c = std::make_shared<Conn>();
        Conn *raw = c.get();
        int fd = c->fd, peer = c->peer;
        ctl(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLONESHOT, raw);
        write(peer, "x", 1);
        epoll_event e[4];
        n += wait_ms(50, e, 4);
        std::thread worker([c = std::move(c)]() mutable {
            char b;
            read(c->fd, &b, 1);
            usleep(2000);
            c.reset();
        });
        worker.join();
        ctl(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, raw);
        write(peer, "x", 1);
        stale += wait_ms(50, e, 4);
        close(fd);
        close(peer);
    }
    say("bug; events %d, stale %d", n, stale);
    hold();
}
