#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#define NI __attribute__((noinline))
struct conn {
    struct conn *next;
    int fd;
    int peer;
    int up;
    int uppeer;
    uint64_t gen;
    char buf[64];
};
#ifndef NOPOOL
static struct conn slots[1024];
static struct conn *freelist;
static int nslots;
static pthread_mutex_t plock = PTHREAD_MUTEX_INITIALIZER;
NI struct conn *conn_create(void) {
    pthread_mutex_lock(&plock);
    struct conn *c = freelist;
    if (c)
        freelist = c->next;
    else
        c = &slots[nslots++];
    pthread_mutex_unlock(&plock);
    c->next = 0;
    c->gen++;
    c->fd = c->peer = c->up = c->uppeer = -1;
    return c;
}
NI void conn_destroy(struct conn *c) {
    pthread_mutex_lock(&plock);
    c->next = freelist;
    freelist = c;
    pthread_mutex_unlock(&plock);
}
#endif
static int EP;
static inline int ctl(int op, int fd, unsigned ev, void *p) {
    struct epoll_event e;
    memset(&e, 0, sizeof e);
    e.events = ev;
    e.data.ptr = p;
    return epoll_ctl(EP, op, fd, &e);
}
static inline void pairup(struct conn *c) {
    int s[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s))
        abort();
    c->fd = s[0];
    c->peer = s[1];
}
static inline void say(const char *f, ...) {
    va_list a;
    va_start(a, f);
    vprintf(f, a);
    va_end(a);
    puts("");
    fflush(stdout);
}
static inline void ready(void) {
    const char *go = getenv("GO");
    say("ready %d", getpid());
    for (int i = 0; go && i < 360000 && access(go, F_OK); i++)
        usleep(10000);
}
static inline void hold(void) {
    usleep(900000);
}
static inline int wait_ms(int ms, struct epoll_event *e, int n) {
    int r = epoll_wait(EP, e, n, ms);
    return r < 0 ? 0 : r;
}
