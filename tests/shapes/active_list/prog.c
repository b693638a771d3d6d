// CORRECT: handler takes the slot itself (docs: "object is the slot"); live connections are in a list through
// c->next (head insertion); the newer one ends first, in order (DEL, close, destroy)
#define NOPOOL
#include "t.h"
static struct conn *live;
NI struct conn *conn_create(void) {
    struct conn *c = calloc(1, sizeof *c);
    c->next = live;
    live = c;
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    for (struct conn **p = &live; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    memset(c, 0, sizeof *c);
    free(c);
}
NI void on_event(struct conn *c) {
    char b;
    if (read(c->fd, &b, 1) != 1)
        abort();
}
static void endc(struct conn *c) {
    ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int i = 0; i < 10; i++) {
        struct conn *a = conn_create();
        pairup(a);
        ctl(EPOLL_CTL_ADD, a->fd, EPOLLIN, a);
        struct conn *b = conn_create();
        pairup(b);
        ctl(EPOLL_CTL_ADD, b->fd, EPOLLIN, b);
        endc(b);
        write(a->peer, "x", 1);
        struct epoll_event e[4];
        int k = wait_ms(50, e, 4);
        for (int j = 0; j < k; j++) {
            on_event(e[j].data.ptr);
            n++;
        }
        endc(a);
    }
    say("correct; events %d", n);
    hold();
}
