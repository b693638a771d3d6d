// CORRECT: a descriptor begins with a handshake (a slot of the pool); then MOD makes its userdata an object of another
// type, which malloc put where an earlier handshake had been given back; each is freed once nothing points at it
#define NOPOOL
#include "conns.h"
struct stream {
    int fd, peer, got;
    char pad[sizeof(struct conn) - 12];
};
NI struct conn *conn_create(void) {
    struct conn *c = malloc(sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    free(c);
}
NI struct stream *stream_new(void) {
    struct stream *s = malloc(sizeof *s);
    asm volatile("" : "+r"(s));
    s->got = 0;
    return s;
}
NI void stream_end(struct stream *s) {
    del(s->fd);
    close(s->fd);
    close(s->peer);
    free(s);
}
static void end_conn(struct conn *c) {
    del(c->fd);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, same = 0;
    struct conn *old = conn_create(); /* an earlier one, given back: its memory is free */
    uintptr_t at = (uintptr_t)old;
    pairup(old);
    add(old->fd, EPOLLIN, old);
    poke(old->peer);
    n += deliveries_of(old, 50);
    end_conn(old);
    for (int i = 0; i < 30; i++) {
        struct conn *c; /* not at the free address */
        void *keep = malloc(sizeof(struct conn));
        c = conn_create();
        free(keep);
        at = (uintptr_t)keep;
        pairup(c);
        add(c->fd, EPOLLIN, c);
        poke(c->peer);
        n += deliveries_of(c, 50);
        take(c->fd);
        struct stream *s = stream_new(); /* where `old` or `keep` was */
        same += (uintptr_t)s == at;
        s->fd = c->fd;
        s->peer = c->peer;
        ctl(EPOLL_CTL_MOD, s->fd, EPOLLIN, s);
        conn_destroy(c);
        poke(s->peer);
        n += deliveries_of(s, 50);
        take(s->fd);
        stream_end(s);
    }
    say("correct; events %d, at the address of a given back one %d", n, same);
    hold();
}
