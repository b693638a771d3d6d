// CORRECT C++20: each connection is a coroutine; its frame holds an awaiter whose address is the userdata; one-shot,
// re-armed by MOD for each co_await; the frame is destroyed after DEL and close
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
#include <coroutine>
struct Task {
    struct promise_type {
        Task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() { abort(); }
    };
    std::coroutine_handle<promise_type> h;
};
struct Waiter {
    int fd;
    std::coroutine_handle<> h;
    bool added = false;
    Waiter(int fd);
    ~Waiter();
    bool await_ready() { return false; }
    void await_suspend(std::coroutine_handle<> x) {
        h = x;
        ctl(added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLONESHOT, this);
        added = true;
    }
    void await_resume() {}
};
NI Waiter::Waiter(int f) : fd(f) { asm volatile("" ::"r"(this) : "memory"); }
NI Waiter::~Waiter() {
    if (added)
        ctl(EPOLL_CTL_DEL, fd, 0, 0);
    asm volatile("" ::"r"(this) : "memory");
}
static int n, ended;
static Task serve(int fd, int peer) {
    {
        Waiter w(fd);
        for (int i = 0; i < 3; i++) {
            co_await w;
            char b;
            n += read(fd, &b, 1);
        }
#ifdef TWIN
        w.added = false;
#endif
    }
#ifdef TWIN
    int d = dup(fd);
#endif
    close(fd);
    close(peer);
    ended++;
}
int main() {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 60; i++) {
        int mine[4], other[4];
        Task t[4];
        for (int j = 0; j < 4; j++) {
            makepair(&mine[j], &other[j]);
            t[j] = serve(mine[j], other[j]);
            t[j].h.resume();
            write(other[j], "abc", 3);
        }
        for (int round = 0; round < 9; round++) {
            bool done = true;
            for (auto &x : t)
                done &= x.h.done();
            if (done)
                break;
            struct epoll_event e[8];
            int k = wait_ms(50, e, 8);
            for (int j = 0; j < k; j++) {
                bool mine = false;
                for (auto &x : t)
                    mine |= !x.h.done() && (char *)e[j].data.ptr > (char *)x.h.address() &&
                            (char *)e[j].data.ptr < (char *)x.h.address() + 512;
                if (mine)
                    static_cast<Waiter *>(e[j].data.ptr)->h.resume();
            }
        }
        for (auto &x : t)
            x.h.destroy();
    }
    say("correct; events %d, ended %d", n, ended);
    hold();
}
