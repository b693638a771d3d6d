// CORRECT: create registers the connection and then writes its log; the loop, another thread, may have served and ended
// it by then: destroy removes, closes and gives back. Who created it does not use it any more
#include "conns.h"
static volatile int stop, ended;
NI struct conn *new_conn(int gone) {
    pthread_mutex_lock(&plock);
    struct conn *c = freelist;
    if (c)
        freelist = c->next;
    else
        c = &slots[nslots++];
    pthread_mutex_unlock(&plock);
    pairup(c);
    if (gone)
        close(c->peer);
    add(c->fd, EPOLLIN, c);
    if (gone)
        usleep(3000);
    asm volatile("" : "+r"(c));
    return c;
}
NI void end(struct conn *c) {
    del(c->fd);
    close(c->fd);
    pthread_mutex_lock(&plock);
    c->next = freelist;
    freelist = c;
    pthread_mutex_unlock(&plock);
}
static void *loop(void *x) {
    while (!stop) {
        struct epoll_event e[8];
        int k = wait_ms(20, e, 8);
        for (int i = 0; i < k; i++) {
            end(e[i].data.ptr);
            ended++;
        }
    }
    return 0;
}
int main(void) {
    pthread_t t;
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    pthread_create(&t, 0, loop, 0);
    for (int i = 0; i < 100; i++)
        {
            struct conn *c = new_conn(i & 1);
            if (!(i & 1)) {
                close(c->peer);
                usleep(3000);
            }
        }
    usleep(100000);
    stop = 1;
    pthread_join(t, 0);
    say("correct; ended %d", ended);
    hold();
}
