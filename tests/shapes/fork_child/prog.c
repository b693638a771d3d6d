// BUG (manticore #4057, h2o #1427, libevent #560 shape): fork() inherits the fd; parent closes without DEL,
// frees the slot; the child's copy keeps it alive
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int stale = 0;
    for (int i = 0; i < 3; i++) {
        struct conn *c = conn_create();
        pairup(c);
        ctl(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        pid_t p = fork();
        if (!p) {
            usleep(400000);
            _exit(0);
        }
        usleep(20000);
        int peer = c->peer;
        close(c->fd);
        conn_destroy(c);
        write(peer, "x", 1);
        struct epoll_event e[4];
        for (int z = 0; z < 3; z++) {
            int k = wait_ms(50, e, 4);
            for (int j = 0; j < k; j++)
                if (e[j].data.ptr == c)
                    stale++;
            usleep(1000);
        }
        close(peer);
        waitpid(p, 0, 0);
    }
    say("bug; stale deliveries %d", stale);
    hold();
}
