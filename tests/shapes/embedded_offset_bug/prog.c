// BUG, libevent-like: userdata is the watcher embedded at offset 16, which the profile says; freed while
// registered
#define NOPOOL
#include "conns.h"
struct event {
    int fd;
    void (*callback)(struct event *);
};
struct client {
    long id, bytes;
    struct event ev;
    int peer;
    struct client *next;
};
static struct client *unused;
static int handled;
NI struct client *client_new(void) {
    struct client *o = unused;
    if (o)
        unused = o->next;
    else
        o = calloc(1, sizeof *o);
    asm volatile("" : "+r"(o));
    return o;
}
NI void client_free(struct client *o) {
    o->next = unused;
    unused = o;
}
static void on_readable(struct event *ev) {
    handled++;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 20; i++) {
        struct client *o = client_new();
        makepair(&o->ev.fd, &o->peer);
        o->ev.callback = on_readable;
        add(o->ev.fd, EPOLLIN, &o->ev);
        poke(o->peer);
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++) {
            struct event *ev = e[j].data.ptr;
            ev->callback(ev);
        }
        int fd = o->ev.fd, peer = o->peer;
        client_free(o);
        stale += deliveries_of(&o->ev, 0);
        close(fd);
        close(peer);
    }
    say("bug; events %d, stale %d", handled, stale);
    hold();
}
