// CORRECT: an idle connection gives its object back: MOD makes its userdata a static marker; the next event makes a new object
// for it. The second descriptor of an object stays in the same way when the object ends
#include "conns.h"
static char idle;
static int kept[10];
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, parked = 0, peers[10];
    for (int i = 0; i < 10; i++) {
        struct conn *c = open_conn(EPOLLIN);
        kept[i] = c->fd, peers[i] = c->peer;
        ctl(EPOLL_CTL_MOD, c->fd, EPOLLIN, &idle);
        conn_destroy(c);
    }
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < 10; i++) {
            poke(peers[i]);
            struct epoll_event e[4];
            int k = wait_ms(100, e, 4);
            for (int j = 0; j < k; j++) {
                if (e[j].data.ptr != &idle)
                    abort();
                struct conn *c = conn_create();
                c->fd = kept[i];
                ctl(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
                poke(peers[i]);
                n += deliveries_of(c, 100);
                take(c->fd), take(c->fd);
#ifdef TWIN
                if (i != 5)
#endif
                ctl(EPOLL_CTL_MOD, c->fd, EPOLLIN, &idle);
                conn_destroy(c);
#ifdef TWIN
                if (i == 5) {
                    poke(peers[i]);
                    n += 1000 * deliveries_of(c, 100);
                    take(kept[i]);
                    ctl(EPOLL_CTL_MOD, kept[i], EPOLLIN, &idle);
                }
#endif
                parked++;
            }
        }
    say("correct; events %d, parked %d", n, parked);
    hold();
}
