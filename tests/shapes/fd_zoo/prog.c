// CORRECT: objects over a timerfd, eventfd, signalfd, pipe and inotify descriptor; each event is answered by
// a read
#include "conns.h"
#include <sys/inotify.h>
#include <sys/signalfd.h>
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    char name[] = "/tmp/shape-zoo-XXXXXX";
    int file = mkstemp(name);
    ready();
    int n = 0;
    for (int i = 0; i < 25; i++) {
        struct conn *c[5];
        int pipes[2];
        for (int j = 0; j < 5; j++)
            c[j] = conn_create();
        pipe2(pipes, O_CLOEXEC);
        c[0]->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
        c[1]->fd = eventfd(0, EFD_CLOEXEC);
        c[2]->fd = signalfd(-1, &set, SFD_CLOEXEC);
        c[3]->fd = pipes[0];
        c[4]->fd = inotify_init1(IN_CLOEXEC);
        inotify_add_watch(c[4]->fd, name, IN_MODIFY);
        for (int j = 0; j < 5; j++)
            add(c[j]->fd, EPOLLIN, c[j]);
        struct itimerspec soon = {.it_value.tv_nsec = 1000000};
        timerfd_settime(c[0]->fd, 0, &soon, 0);
        eventfd_write(c[1]->fd, 1);
        kill(getpid(), SIGUSR1);
        poke(pipes[1]);
        poke(file);
        for (int seen = 0; seen < 5;) {
            struct epoll_event e[8];
            int k = wait_ms(100, e, 8);
            for (int j = 0; j < k; j++, seen++, n++) {
                char b[4096];
                read(((struct conn *)e[j].data.ptr)->fd, b, sizeof b);
            }
        }
        for (int j = 0; j < 5; j++) {
            if (i & 1)
                del(c[j]->fd);
            close(c[j]->fd);
            conn_destroy(c[j]);
        }
        close(pipes[1]);
    }
    unlink(name);
    say("correct; events %d", n);
    hold();
}
