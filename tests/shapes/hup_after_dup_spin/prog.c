// BUG (joyent/libuv #1099): socket shared with a forked process; closed here without DEL, the object is kept
// (not destroyed): EPOLLOUT junk in every batch
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    struct conn *c = conn_create();
    pairup(c);
    ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLOUT, c);
    pid_t p = fork();
    if (!p) {
        usleep(3000000);
        _exit(0);
    }
    usleep(300000);
    close(c->fd);
    for (int i = 0; i < 20000; i++) {
        struct epoll_event e[4];
        n += wait_ms(50, e, 4);
    }
    say("bug; spun %d times for a closed fd", n);
    kill(p, 9);
    waitpid(p, 0, 0);
    hold();
}
