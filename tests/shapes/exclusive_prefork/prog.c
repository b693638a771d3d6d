// CORRECT: forked workers share one listener, each in an instance of its own with EPOLLEXCLUSIVE and a slot
// as userdata; some are woken in vain
#include "conns.h"
static struct sockaddr_in at;
static int serve(int listener) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    struct conn *l = conn_create();
    l->fd = listener;
    add(listener, EPOLLIN | EPOLLEXCLUSIVE, l);
    int served = 0;
    for (double end = seconds() + 2.5; seconds() < end;) {
        struct epoll_event e[8];
        int n = wait_ms(50, e, 8);
        for (int j = 0; j < n; j++) {
            struct conn *c = e[j].data.ptr;
            if (c == l) {
                int fd = accept4(listener, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (fd < 0)
                    continue;
                c = conn_create();
                c->fd = fd;
                add(fd, EPOLLIN, c);
                continue;
            }
            char b[64];
            if (read(c->fd, b, sizeof b) > 0) {
                write(c->fd, "y", 1);
                continue;
            }
            del(c->fd);
            close(c->fd);
            conn_destroy(c);
            served++;
        }
    }
    return served > 200 ? 200 : served;
}
int main(void) {
    int listener = listen_local(&at);
    ready();
    pid_t worker[3];
    for (int i = 0; i < 3; i++)
        if (!(worker[i] = fork()))
            _exit(serve(listener));
    usleep(200000);
    for (int i = 0; i < 300; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&at, sizeof at))
            abort();
        char b;
        if (write(fd, "x", 1) != 1 || read(fd, &b, 1) != 1)
            abort();
        close(fd);
    }
    int served = 0, status;
    for (int i = 0; i < 3; i++) {
        waitpid(worker[i], &status, 0);
        served += WEXITSTATUS(status);
    }
    say("correct; served %d", served);
    hold();
}
