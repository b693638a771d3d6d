// CORRECT: watched by --exe; helpers are forked, close every number up to 256 (most are not open) and execute
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int i = 0; i < 20; i++) {
        struct conn *c = open_conn(EPOLLIN);
        poke(c->peer);
        deliveries_of(c, 100);
        pid_t p = fork();
        if (!p) {
            for (int fd = 3; fd < 256; fd++)
                close(fd);
            execl("/bin/true", "true", (char *)0);
            _exit(1);
        }
        waitpid(p, 0, 0);
        end_conn(c);
    }
    say("correct");
    hold();
}
