// BUG: another thread frees the slot (no DEL) while the loop sits in epoll_wait, then data comes: the wait
// began before the destroy
#include "t.h"
static struct conn *c;
static int p;
static void *other(void *a) {
    usleep(20000);
    conn_destroy(c);
    write(p, "x", 1);
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 5; i++) {
        c = conn_create();
        pairup(c);
        p = c->peer;
        int f = c->fd;
        ctl(EPOLL_CTL_ADD, f, EPOLLIN, c);
        pthread_t t;
        pthread_create(&t, 0, other, 0);
        struct epoll_event e[4];
        int k = wait_ms(500, e, 4);
        for (int j = 0; j < k; j++)
            if (e[j].data.ptr == c)
                stale++;
        pthread_join(t, 0);
        close(f);
        close(p);
    }
    say("bug; stale %d, destroyed inside the wait", stale);
    hold();
}
