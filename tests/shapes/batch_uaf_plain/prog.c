// BUG (amule/wx #1136): handler of event 0 destroys the object of event 1 (DEL+close done); handler takes the
// slot itself; no self pointer in the slot
#define NOPOOL
#include "t.h"
struct k {
    int fd, peer;
    char b[40];
};
NI struct k *conn_create(void) {
    struct k *c = calloc(1, sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct k *c) {
    memset(c, 1, sizeof *c);
    free(c);
}
NI void on_event(struct k *c) {
    asm volatile("" ::"r"(c) : "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int uaf = 0;
    for (int i = 0; i < 5; i++) {
        struct k *a = conn_create(), *b = conn_create();
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        a->fd = s[0];
        a->peer = s[1];
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        b->fd = s[0];
        b->peer = s[1];
        ctl(EPOLL_CTL_ADD, a->fd, EPOLLIN, a);
        ctl(EPOLL_CTL_ADD, b->fd, EPOLLIN, b);
        write(a->peer, "x", 1);
        write(b->peer, "x", 1);
        struct epoll_event e[4];
        int n = wait_ms(50, e, 4);
        for (int j = 0; j < n; j++) {
            struct k *d = e[j].data.ptr;
            if (j)
                uaf++;
            on_event(d);
            if (!j) {
                struct k *o = d == a ? b : a;
                ctl(EPOLL_CTL_DEL, o->fd, 0, 0);
                close(o->fd);
                close(o->peer);
                conn_destroy(o);
            }
        }
        struct k *l = e[0].data.ptr;
        ctl(EPOLL_CTL_DEL, l->fd, 0, 0);
        close(l->fd);
        close(l->peer);
        conn_destroy(l);
    }
    say("bug; handler ran on a freed object %d times", uaf);
    hold();
}
