// CORRECT: every end goes through one wrapper that is often called with nothing, also right before and after
// a real one
#define NOPOOL
#include "conns.h"
NI struct conn *conn_create(void) {
    struct conn *c = malloc(sizeof *c);
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    free(c);
}
static inline void forget(struct conn **at) {
    if (*at) {
        del((*at)->fd);
        close((*at)->fd);
        close((*at)->peer);
    }
    conn_destroy(*at);
    *at = 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *table[4] = {0};
    for (int i = 0; i < 200; i++) {
        struct conn **at = &table[i % 4];
        forget(at);
        forget(at);
        *at = conn_create();
        pairup(*at);
        add((*at)->fd, EPOLLIN, *at);
    }
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < 4; i++)
            forget(&table[i]);
    say("correct");
    hold();
}
