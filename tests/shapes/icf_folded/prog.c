// CORRECT: connections and timers are both freed by a function of one line; at -O2 gcc makes one function of the two
// (-fipa-icf), so that a timer's end runs through the code of conn_destroy
#define NOPOOL
#include "conns.h"
struct timer {
    int fd, kind;
    char pad[sizeof(struct conn) + 100];
};
static long live;
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    live++;
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    live--;
    free(c);
}
NI struct timer *timer_new(void) {
    struct timer *t = calloc(1, sizeof *t);
    live++;
    t->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    asm volatile("" : "+r"(t));
    return t;
}
NI void timer_free(struct timer *t) {
    live--;
    free(t);
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
    int n = 0, again = 0;
    void *was = 0;
    for (int i = 0; i < 30; i++) {
        struct conn *c = conn_create();
        pairup(c);
        add(c->fd, EPOLLIN, c);
        poke(c->peer);
        n += deliveries_of(c, 50);
        struct timer *t = timer_new();
        again += t == was;
        was = t;
        close(t->fd);
        timer_free(t);
        end_conn(c);
    }
    say("correct; events %d, same timer address %d, live %ld", n, again, live);
    hold();
}
