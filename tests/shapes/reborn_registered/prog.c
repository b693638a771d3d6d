// BUG: a worker destroys a registered slot; the pool gives it out again at once, and it lives on with another
// descriptor, while the old one is still registered and ready
#include "conns.h"
static struct conn *victim;
static void *worker(void *arg) {
    conn_destroy(victim);
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int wrong = 0;
    for (int i = 0; i < 6; i++) {
        victim = open_conn(EPOLLIN);
        int fd = victim->fd, peer = victim->peer;
        pthread_t t;
        pthread_create(&t, 0, worker, 0);
        pthread_join(t, 0);
        struct conn *c = open_conn(EPOLLIN);
        if (c != victim)
            abort();
        poke(peer);
        wrong += deliveries_of(c, 50);
        close(fd);
        close(peer);
        end_conn(c);
    }
    say("bug; events of the old life that reached the new one %d", wrong);
    hold();
}
