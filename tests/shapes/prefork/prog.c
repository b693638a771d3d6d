// CORRECT prefork server: master forks 3 workers AFTER setting up; each worker makes its own epoll; slots in
// private memory (same addresses); all correct. watch --exe
#include "t.h"
static void work(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < 100; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        write(c->peer, "x", 1);
        struct epoll_event e[4];
        wait_ms(50, e, 4);
        ctl(EPOLL_CTL_DEL, c->fd, 0, 0);
        close(c->fd);
        close(c->peer);
        conn_destroy(c);
        usleep(5000);
    }
}
int main(void) {
    ready();
    pid_t p[3];
    for (int i = 0; i < 3; i++)
        if (!(p[i] = fork())) {
            work();
            _exit(0);
        }
    for (int i = 0; i < 3; i++)
        waitpid(p[i], 0, 0);
    say("correct");
    hold();
}
