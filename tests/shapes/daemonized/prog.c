// CORRECT: registers its connections, then becomes a daemon (fork twice, parents leave): the child serves and ends them
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c[20];
    for (int i = 0; i < 20; i++)
        c[i] = open_conn(EPOLLIN);
    for (int f = 0; f < 2; f++) {
        pid_t p = fork();
        if (p) {
            if (f == 0)
                waitpid(p, 0, 0), usleep(1500000);
            _exit(0);
        }
        setsid();
    }
    usleep(300000);
    int n = 0;
    for (int i = 0; i < 20; i++) {
        poke(c[i]->peer);
        n += deliveries_of(c[i], 100);
        take(c[i]->fd);
#ifdef TWIN
        int fd = c[i]->fd, peer = c[i]->peer;
        conn_destroy(c[i]);
        poke(peer);
        n += 1000 * deliveries_of(c[i], 100);
        close(fd), close(peer);
#else
        end_conn(c[i]);
#endif
    }
    say("correct; events %d", n);
    hold();
}
