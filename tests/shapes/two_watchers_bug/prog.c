// BUG: as two_watchers, but the output watcher's registration is forgotten: freed while registered, delivered
#define NOPOOL
#include "conns.h"
struct watcher {
    int fd, kind;
};
struct box {
    long id;
    struct watcher r;
    char between[40];
    struct watcher w;
    int peer;
};
static struct box pool[64];
static int used;
NI struct box *box_create(void) {
    struct box *b = &pool[used++ % 64];
    asm volatile("" : "+r"(b));
    return b;
}
NI void box_destroy(struct box *b) {
    b->id = 0;
    asm volatile("" ::: "memory");
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, stale = 0;
    for (int i = 0; i < 20; i++) {
        struct box *b = box_create();
        makepair(&b->r.fd, &b->peer);
        b->w.fd = fcntl(b->r.fd, F_DUPFD_CLOEXEC, 0);
        add(b->r.fd, EPOLLIN, &b->r);
        add(b->w.fd, EPOLLOUT, &b->w);
        poke(b->peer);
        struct epoll_event e[4];
        n += wait_ms(50, e, 4);
        take(b->r.fd);
        del(b->r.fd);
        close(b->r.fd);
        int fd = b->w.fd;
        box_destroy(b);
        stale += wait_ms(50, e, 4);
        del(fd);
        close(fd);
        close(b->peer);
    }
    say("bug; events %d, for freed ones %d", n, stale);
    hold();
}
