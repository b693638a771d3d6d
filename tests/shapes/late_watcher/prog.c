// CORRECT: a late watcher: 2,000 connections exist before the attach; some end and begin anew while it
// attaches
#define NOPOOL
#include "conns.h"
enum { CONNS = 2000 };
static struct conn pool[CONNS + 64], *unused;
static int used;
NI struct conn *conn_create(void) {
    struct conn *c = unused;
    if (c)
        unused = c->next;
    else
        c = &pool[used++];
    c->gen++;
    return c;
}
NI void conn_destroy(struct conn *c) {
    c->next = unused;
    unused = c;
}
static struct conn *all[CONNS];
static int stop;
static struct conn *open_one(void) {
    struct conn *c = conn_create();
    pairup(c);
    add(c->fd, EPOLLIN, c);
    return c;
}
static void end_one(struct conn *c, int removes) {
    if (removes)
        del(c->fd);
    close(c->fd);
    close(c->peer);
    conn_destroy(c);
}
static void *loop(void *arg) { // some end and begin anew all the time, also while the watcher attaches
    long n = 0;
    for (int i = 0; !__atomic_load_n(&stop, __ATOMIC_SEQ_CST); i++) {
        struct conn **at = &all[i * 7 % CONNS];
        poke((*at)->peer);
        n += deliveries_of(*at, 50);
        take((*at)->fd);
        end_one(*at, i & 1);
        *at = open_one();
        usleep(500);
    }
    for (int i = 0; i < CONNS; i++)
        end_one(all[i], i & 1);
    return (void *)n;
}
int main(void) {
    struct rlimit many = {.rlim_cur = 8192, .rlim_max = 8192};
    if (setrlimit(RLIMIT_NOFILE, &many))
        abort();
    EP = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < CONNS; i++)
        all[i] = open_one();
    pthread_t t;
    pthread_create(&t, 0, loop, 0);
    ready();
    usleep(1500000);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    void *n;
    pthread_join(t, &n);
    say("correct; events %ld", (long)n);
    hold();
}
