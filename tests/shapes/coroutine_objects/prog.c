// CORRECT: each connection is a local variable of its coroutine, on a stack of its own that the next one uses again; the
// scheduler resumes who is woken; removed before the function returns
#include "conns.h"
#include <ucontext.h>
static ucontext_t loop, co[8];
static char *stacks[8];
static int busy[8], n, ended;
struct task {
    struct task *next;
    int fd, peer, who;
    char b[64];
};
NI void task_init(struct task *t, int who) {
    int s[2];
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s);
    t->fd = s[0], t->peer = s[1], t->who = who;
    asm volatile("" ::"r"(t) : "memory");
}
NI void task_fini(struct task *t) {
    asm volatile("" ::"r"(t) : "memory");
    t->who = -1;
}
static void body(int who) {
    struct task t;
    task_init(&t, who);
    add(t.fd, EPOLLIN, &t);
    for (int i = 0; i < 3; i++) {
        poke(t.peer);
        swapcontext(&co[who], &loop);
        n++;
        take(t.fd);
    }
#ifndef TWIN
    del(t.fd);
    close(t.fd);
#endif
    close(t.peer);
    task_fini(&t);
    busy[who] = 0;
    ended++;
    setcontext(&loop);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < 8; i++)
        stacks[i] = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ready();
    for (volatile int round = 0; round < 60; round++) {
        for (volatile int i = 0; i < 8; i++)
            if (!busy[i]) {
                busy[i] = 1;
                getcontext(&co[i]);
                co[i].uc_stack.ss_sp = stacks[i], co[i].uc_stack.ss_size = 1 << 16, co[i].uc_link = &loop;
                makecontext(&co[i], (void (*)(void))body, 1, i);
                swapcontext(&loop, &co[i]);
            }
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (volatile int j = 0; j < k; j++) {
            struct task *t = e[j].data.ptr;
            if (t->who >= 0)
                swapcontext(&loop, &co[t->who]);
        }
    }
    say("correct; events %d, ended %d", n, ended);
    hold();
}
