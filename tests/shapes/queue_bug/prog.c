// BUG: the loop's queue of ready objects still holds one that a handler has ended: the handler then runs on a
// freed object
#define NOPOOL
#include "conns.h"
static struct conn pool[64], *unused;
static int used, ran;
NI struct conn *conn_create(void) {
    struct conn *c = unused;
    if (c)
        unused = c->next;
    else
        c = &pool[used++];
    asm volatile("" : "+r"(c));
    return c;
}
NI void conn_destroy(struct conn *c) {
    c->fd = c->peer = -1;
    c->next = unused;
    unused = c;
}
NI void on_event(struct conn *c) {
    ran += c->fd < 0;
    asm volatile("" ::"r"(c) : "memory");
}
static struct conn *open_conn_now(void) {
    struct conn *c = conn_create();
    pairup(c);
    add(c->fd, EPOLLIN, c);
    poke(c->peer);
    return c;
}
static void end(struct conn *c) {
    del(c->fd);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
}
NI static int poll_once(struct conn **queue) {
    struct epoll_event e[16];
    int n = wait_ms(50, e, 16);
    for (int j = 0; j < n; j++)
        queue[j] = e[j].data.ptr;
    return n;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 5; i++) {
        open_conn_now();
        open_conn_now();
        struct conn *queue[16];
        if (poll_once(queue) != 2)
            abort();
        on_event(queue[0]);
        end(queue[1]);
        on_event(queue[1]);
        end(queue[0]);
    }
    say("bug; the handler ran on a freed object %d times", ran);
    hold();
}
