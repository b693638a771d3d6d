// BUG: a helper is started by fork and exec and inherits a descriptor without close-on-exec; closed here,
// destroyed, delivered
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 3; i++) {
        struct conn *c = open_conn(EPOLLIN);
        fcntl(c->fd, F_SETFD, 0);
        pid_t helper = fork();
        if (!helper) {
            execl("/bin/sleep", "sleep", "1", (char *)0);
            _exit(1);
        }
        usleep(300000);
        int peer = c->peer;
        close(c->fd);
        conn_destroy(c);
        poke(peer);
        stale += deliveries_of(c, 50);
        kill(helper, SIGKILL);
        waitpid(helper, 0, 0);
        close(peer);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
