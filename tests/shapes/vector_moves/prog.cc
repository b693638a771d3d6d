// CORRECT C++: connections live in a std::vector; when it grows all move: constructors at the new place, MOD for each, then
// destructors at the old one; the last one takes the place of one that ends
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
static void add(int fd, unsigned events, void *data) {
    if (ctl(EPOLL_CTL_ADD, fd, events, data))
        abort();
}
#include <vector>
struct Conn2 {
    int fd = -1, peer = -1;
    char b[48];
    Conn2(int f, int p);
    Conn2(Conn2 &&o) noexcept;
    Conn2 &operator=(Conn2 &&o) noexcept {
        fd = o.fd, peer = o.peer, o.fd = -1;
        ctl(EPOLL_CTL_MOD, fd, EPOLLIN, this);
        return *this;
    }
    ~Conn2();
};
NI Conn2::Conn2(int f, int p) : fd(f), peer(p) { ctl(EPOLL_CTL_ADD, fd, EPOLLIN, this); }
NI Conn2::Conn2(Conn2 &&o) noexcept : fd(o.fd), peer(o.peer) {
    o.fd = -1;
#ifndef TWIN
    ctl(EPOLL_CTL_MOD, fd, EPOLLIN, this);
#endif
    asm volatile("" ::"r"(this) : "memory");
}
NI Conn2::~Conn2() {
    if (fd >= 0)
        ctl(EPOLL_CTL_DEL, fd, 0, 0), close(fd), close(peer);
    asm volatile("" ::"r"(this) : "memory");
}
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int round = 0; round < 20; round++) {
        std::vector<Conn2> all;
        for (int i = 0; i < 12; i++) {
            int m, o;
            makepair(&m, &o);
            all.emplace_back(m, o);
            poke(all[i / 2].peer);
            struct epoll_event e[4];
            n += wait_ms(20, e, 4);
        }
        while (all.size() > 2) {
            std::swap(all[1].b[0], all[0].b[0]);
            Conn2 &victim = all[1];
            ctl(EPOLL_CTL_DEL, victim.fd, 0, 0), close(victim.fd), close(victim.peer), victim.fd = -1;
            if (&victim != &all.back())
                victim = std::move(all.back());
            all.pop_back();
            struct epoll_event e[4];
            n += wait_ms(0, e, 4);
        }
    }
    say("correct; events %d", n);
    hold();
}
