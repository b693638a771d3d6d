// BUG in C++: deleted twice, through a virtual destructor and a pool of the class's own
#include "t.h"
struct Base {
    virtual ~Base();
    int fd = -1, peer = -1;
};
struct Conn : Base {
    ~Conn() override;
    static void *operator new(size_t);
    static void operator delete(void *) {
    }
    char pad[64];
};
static int n;
NI Base::~Base() {
    asm volatile("");
}
NI Conn::~Conn() {
    memset(pad, 0x5a, sizeof pad);
    asm volatile("");
}
void *Conn::operator new(size_t size) {
    static char room[64][128];
    return room[n++];
}
NI Conn *make() {
    return new Conn;
}
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 5; i++) {
        Conn *c = make();
        void *vtable = *(void **)c;
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s);
        ctl(EPOLL_CTL_ADD, s[0], EPOLLIN, c);
        ctl(EPOLL_CTL_DEL, s[0], 0, 0);
        close(s[0]);
        close(s[1]);
        Base *volatile b = c;
        delete b;
        *(void *volatile *)c = vtable; // the first destructor left its base's
        delete b;
    }
    say("bug; double deletes 5");
    hold();
}
