// CORRECT: slots come from malloc; the addresses of ended ones come back as objects of another type, which
// are registered too
#define NOPOOL
#include "conns.h"
struct timer {
    int fd, kind;
    char pad[sizeof(struct conn) - 8];
};
NI struct conn *conn_create(void) {
    struct conn *c = malloc(sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    free(c);
}
NI static struct timer *timer_new(void) {
    struct timer *t = malloc(sizeof *t);
    t->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    asm volatile("" : "+r"(t));
    return t;
}
NI static void timer_end(struct timer *t) {
    del(t->fd);
    close(t->fd);
    free(t);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, again = 0;
    for (int i = 0; i < 30; i++) {
        struct conn *c = conn_create();
        pairup(c);
        add(c->fd, EPOLLIN, c);
        poke(c->peer);
        n += deliveries_of(c, 50);
        del(c->fd);
        close(c->fd);
        close(c->peer);
        uintptr_t address = (uintptr_t)c;
        conn_destroy(c);
        struct timer *t = timer_new();
        again += (uintptr_t)t == address;
        struct itimerspec soon = {.it_value.tv_nsec = 1000000};
        add(t->fd, EPOLLIN, t);
        timerfd_settime(t->fd, 0, &soon, 0);
        n += deliveries_of(t, 50);
        timer_end(t);
    }
    say("correct; events %d, same address as another type %d", n, again);
    hold();
}
