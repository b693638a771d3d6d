// An inlined destroy whose first loads are scheduled among its caller's code, before its argument has a location.
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
struct conn { struct conn *next; int fd; int peer; long refs; };
static int ep;
static inline int ctl(int op, int fd, void *p) {
    struct epoll_event e;
    memset(&e, 0, sizeof e);
    e.events = EPOLLIN;
    e.data.ptr = p;
    return epoll_ctl(ep, op, fd, &e);
}
static struct conn *conn_create(void) { struct conn *c = calloc(1, sizeof *c); return c; }
static void conn_destroy(struct conn *c) {
    ctl(EPOLL_CTL_DEL, c->fd, 0); close(c->fd); close(c->peer);
    memset(c, 0x5a, sizeof *c); free(c);
}
static void conn_unref(struct conn *c) { if (--c->refs) return; free(c); }
int main(void) {
    ep = epoll_create1(0);
    int n = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        int s[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, s)) abort();
        c->fd = s[0];
        c->peer = s[1];
        ctl(EPOLL_CTL_ADD, c->fd, c);
        if (write(c->peer, "x", 1) != 1) abort();
        struct epoll_event e[4];
        int k = epoll_wait(ep, e, 4, 100);
        for (int j = 0; j < k; j++) { struct conn *d = e[j].data.ptr; char b; if (read(d->fd, &b, 1) == 1) n++; conn_destroy(d); }
    }
    for (int i = 0; i < 20; i++) {
        struct conn *c = conn_create();
        c->refs = 2;
        ctl(EPOLL_CTL_ADD, c->fd, c);
        conn_unref(c);
        close(-1);
        conn_unref(c);
    }
    return n != 20;
}
