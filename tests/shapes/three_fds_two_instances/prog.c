// CORRECT: a slot with three descriptors, each in two instances; all six registrations are removed, then it
// is destroyed
#include "conns.h"
int main(void) {
    int in = epoll_create1(EPOLL_CLOEXEC), out = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, stale = 0;
    for (int i = 0; i < 10; i++) {
        struct conn *c = conn_create();
        int fd[3], other[3];
        for (int j = 0; j < 3; j++) {
            makepair(&fd[j], &other[j]);
            EP = in;
            add(fd[j], EPOLLIN, c);
            EP = out;
            add(fd[j], EPOLLOUT | EPOLLET, c);
        }
        EP = out;
        n += deliveries_of(c, 50);
        EP = in;
        poke(other[i % 3]);
        n += deliveries_of(c, 50);
        take(fd[i % 3]);
        for (int j = 0; j < 3; j++) {
            EP = in;
            del(fd[j]);
            EP = out;
            if (1)
                del(fd[j]);
        }
        conn_destroy(c);
        usleep(2000);
        poke(other[2]);
        EP = out;
        stale += deliveries_of(c, 10);
        for (int j = 0; j < 3; j++) {
            close(fd[j]);
            close(other[j]);
        }
    }
    say("correct; events %d, stale %d", n, stale);
    hold();
}
