// BUG: userdata points at a watcher embedded at offset 16 of the object; the destroy gets the object. freed
// without DEL: stale
#define NOPOOL
#include "t.h"
struct watcher {
    int fd;
    void (*cb)(void);
};
struct obj {
    long a, b;
    struct watcher w;
    int peer;
    struct obj *next;
};
static struct obj *fl;
NI struct obj *obj_create(void) {
    struct obj *o = fl;
    if (o)
        fl = o->next;
    else
        o = calloc(1, sizeof *o);
    return o;
}
NI void obj_destroy(struct obj *o) {
    o->next = fl;
    fl = o;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 5; i++) {
        struct obj *o = obj_create();
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        o->w.fd = s[0];
        o->peer = s[1];
        ctl(EPOLL_CTL_ADD, o->w.fd, EPOLLIN, &o->w);
        obj_destroy(o);
        write(s[1], "x", 1);
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++)
            if (e[j].data.ptr == &o->w)
                stale++;
        close(s[0]);
        close(s[1]);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
