// CORRECT C++: the profile names the constructor as create; removed, then deleted, then closed
#include "t.h"
namespace net {
struct Conn {
    int fd = -1, peer = -1;
    char pad[64];
    explicit Conn(int number);
    ~Conn();
};
NI Conn::Conn(int number) {
    memset(pad, number, sizeof pad);
    asm volatile("" ::: "memory");
}
NI Conn::~Conn() {
    memset(pad, 0x5a, sizeof pad);
    asm volatile("" ::: "memory");
}
} // namespace net
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 10; i++) {
        net::Conn *c = new net::Conn(i);
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s);
        c->fd = s[0];
        c->peer = s[1];
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        delete c;
        write(s[1], "x", 1);
        epoll_event e[4];
        int k = wait_ms(20, e, 4);
        for (int j = 0; j < k; j++)
            n += e[j].data.ptr == c;
        close(s[0]);
        close(s[1]);
    }
    say("correct; events after the delete %d", n);
    hold();
}
