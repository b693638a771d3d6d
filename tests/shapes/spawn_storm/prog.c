// CORRECT: one thread starts hundreds of helpers by posix_spawn and vfork, while the loop opens connections
// and ends them in order
#include "conns.h"
#include <spawn.h>
extern char **environ;
static int stop, helpers;
static void *spawner(void *arg) {
    char *argv[] = {"true", 0};
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        pid_t p = -1;
        if (helpers++ & 1) {
            if (posix_spawn(&p, "/bin/true", 0, 0, argv, environ))
                abort();
        } else if (!(p = vfork())) {
            execl("/bin/true", "true", (char *)0);
            _exit(1);
        }
        waitpid(p, 0, 0);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    pthread_t t;
    pthread_create(&t, 0, spawner, 0);
    int n = 0;
    for (double end = seconds() + 2; seconds() < end;) {
        struct conn *c[8];
        for (int i = 0; i < 8; i++)
            poke((c[i] = open_conn(EPOLLIN))->peer);
        struct epoll_event e[8];
        n += wait_ms(50, e, 8);
        for (int i = 0; i < 8; i++)
            end_conn(c[i]);
        usleep(500);
    }
    stop = 1;
    pthread_join(t, 0);
    say("correct; events %d, helpers %d", n, helpers);
    hold();
}
