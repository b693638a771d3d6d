// Pools as templates: several types, the same method names. Destroyed by destructors, in exceptions, through
// lambdas, virtual functions and smart pointers.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include "truth.h"

namespace net {
template <typename T> class Pool {
    union Node { Node *next; alignas(T) unsigned char bytes[sizeof(T)]; };
    Node *free_ = nullptr;
    long live_ = 0;

  public:
    T *create() {
        Node *node = free_;
        if (node) free_ = node->next;
        else node = static_cast<Node *>(std::malloc(sizeof(Node)));
        if (!node) throw std::bad_alloc();
        live_++;
        return new (node) T();
    }
    void destroy(T *slot) {
        slot->~T();
        Node *node = reinterpret_cast<Node *>(slot);
        node->next = free_;
        free_ = node;
        live_--;
    }
    long live() const { return live_; }
};
struct Session { int state = 0; long pad[3] = {}; int get() const { return state; } };
struct Conn { Session *session = nullptr; Conn *next = nullptr; int fd = -1; };

struct Server {
    Pool<Conn> conns;
    Pool<Session> sessions;
    Pool<long> numbers;

    Conn *accept(int fd) {
        Conn *c = conns.create();
        note('C', c);
        c->fd = fd;
        c->session = sessions.create();
        c->session->state = fd;
        return c;
    }
    void release(Conn *c) {
        sessions.destroy(c->session);
        note('D', c);
        conns.destroy(c);
    }
    __attribute__((noinline)) void disown(Conn *conn) { release(conn); }
    __attribute__((noinline)) int dispatch(Conn *c) {
        if (!c->session) return 0;
        note('S', c->session);
        return c->session->get();
    }
};
struct Guard {
    Server &server;
    Conn *conn;
    Guard(Server &s, Conn *c) : server(s), conn(c) {}
    ~Guard() { if (conn) server.release(conn); }
    Conn *keep() { Conn *c = conn; conn = nullptr; return c; }
};
struct Ender { virtual ~Ender() = default; virtual void end(Server &s, Conn *c) = 0; };
struct Plain : Ender { void end(Server &s, Conn *c) override { s.release(c); } };
struct Disowner : Ender {
    void end(Server &s, Conn *c) override { note('O', c); s.disown(c); }
};
__attribute__((noinline)) void risky(int fd) { if (fd % 5 == 3) throw std::runtime_error("x"); }
__attribute__((noinline)) Conn *setup(Server &server, int fd) {
    Guard guard(server, server.accept(fd));
    risky(fd);
    if (fd % 7 == 6) return nullptr; // the destructor on a normal way out
    return guard.keep();
}
template <typename F> __attribute__((noinline)) void apply(Conn *c, F f) { f(c); }
} // namespace net

int main() {
    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    net::Server server;
    net::Plain plain;
    net::Disowner disowner;
    net::Ender *enders[] = {&plain, &disowner};
    int sum = 0;
    for (int i = 0; i < 42; i++) {
        net::Conn *c = nullptr;
        try {
            c = net::setup(server, i);
        } catch (const std::exception &) {
            continue;
        }
        if (!c) continue;
        sum += server.dispatch(c);
        if (i % 4 == 0) net::apply(c, [&](net::Conn *conn) { server.release(conn); });
        else if (i % 4 == 1) enders[i / 4 % 2]->end(server, c);
        else if (i % 4 == 2) {
            auto end = [&](net::Conn *conn) { server.release(conn); };
            std::unique_ptr<net::Conn, decltype(end)> owner(c, end);
        } else server.release(c);
        long *number = server.numbers.create();
        server.numbers.destroy(number);
    }
    std::printf("sum %d %ld\n", sum, server.conns.live());
    return 0;
}
