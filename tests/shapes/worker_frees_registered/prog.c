// BUG: a worker destroys registered slots and then sleeps for ever in a futex: it never waits for events
// again, nothing is delivered, no slot is born again
#include "conns.h"
static struct conn *own[5];
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static void *worker(void *arg) {
    for (int i = 0; i < 5; i++)
        conn_destroy(own[i]);
    pthread_mutex_lock(&m);
    for (;;)
        pthread_cond_wait(&never, &m);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 5; i++)
        own[i] = open_conn(EPOLLIN);
    pthread_t t;
    pthread_create(&t, 0, worker, 0);
    int n = 0;
    for (int i = 0; i < 30; i++) {
        struct epoll_event e[8];
        n += wait_ms(100, e, 8);
    }
    say("bug; freed while registered 5, events %d", n);
    hold();
}
