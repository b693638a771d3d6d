// CORRECT: the program executes itself, with the same addresses (no randomization): what the first life
// destroyed, left registered or left open is nothing to the second
#include "conns.h"
#include <sys/personality.h>
int main(int argc, char **argv) {
    if (argc == 1) {
        personality(ADDR_NO_RANDOMIZE);
        execl("/proc/self/exe", argv[0], "first", (char *)0);
        abort();
    }
    EP = epoll_create1(EPOLL_CLOEXEC);
    struct conn *c[10];
    int n = 0;
    if (strcmp(argv[1], "second")) {
        ready();
        for (int i = 0; i < 10; i++)
            c[i] = open_conn(EPOLLIN);
        for (int i = 0; i < 5; i++)
            end_conn(c[i]);
        execl("/proc/self/exe", argv[0], "second", (char *)0);
        abort();
    }
    for (int i = 0; i < 10; i++) {
        c[i] = open_conn(EPOLLIN);
        poke(c[i]->peer);
        n += deliveries_of(c[i], 50);
        take(c[i]->fd);
    }
    usleep(500000);
    for (int i = 0; i < 10; i++)
        end_conn(c[i]);
    say("correct; events of the second life %d", n);
    hold();
}
