// What most of these programs do the same way, around t.h.
#include "t.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>
static inline void makepair(int *mine, int *other) {
    int s[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s))
        abort();
    *mine = s[0];
    *other = s[1];
}
static inline void poke(int fd) {
    if (write(fd, "x", 1) != 1)
        abort();
}
static inline void take(int fd) {
    char b;
    if (read(fd, &b, 1) != 1)
        abort();
}
static inline void add(int fd, unsigned events, void *data) {
    if (ctl(EPOLL_CTL_ADD, fd, events, data))
        abort();
}
static inline void del(int fd) {
    if (ctl(EPOLL_CTL_DEL, fd, 0, 0))
        abort();
}
// How many of the events that come within `ms` carry `data`.
static inline int deliveries_of(void *data, int ms) {
    struct epoll_event e[16];
    int n = wait_ms(ms, e, 16), of = 0;
    for (int i = 0; i < n; i++)
        of += e[i].data.ptr == data;
    return of;
}
static inline int listen_local(struct sockaddr_in *at) {
    socklen_t size = sizeof *at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)at, size) || getsockname(fd, (struct sockaddr *)at, &size) ||
        listen(fd, 99))
        abort();
    return fd;
}
static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
#ifndef NOPOOL
// A connection of the pool, registered.
static inline struct conn *open_conn(unsigned events) {
    struct conn *c = conn_create();
    pairup(c);
    add(c->fd, events, c);
    return c;
}
// The right order on one thread: remove, close, give back.
static inline void end_conn(struct conn *c) {
    del(c->fd);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
}
#endif
