// CORRECT: destroy(NULL) is allowed and frequent
#define NOPOOL
#include "t.h"
NI struct conn *conn_create(void) {
    return calloc(1, sizeof(struct conn));
}
NI void conn_destroy(struct conn *c) {
    if (!c)
        return;
    memset(c, 1, sizeof *c);
    free(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 100; i++) {
        conn_destroy(0);
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
        conn_destroy(0);
    }
    say("correct");
    hold();
}
