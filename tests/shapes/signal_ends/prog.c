// CORRECT: SIGALRM comes in the loop's wait and in its handlers; the signal's handler ends an idle connection (DEL, close,
// give back), never one that the batch names
#include "conns.h"
#include <sys/time.h>
static struct conn *volatile idle;
static volatile int ended, busy;
static void on_alarm(int s) {
    struct conn *c = idle;
    if (!c || busy)
        return;
    idle = 0;
#ifdef TWIN
    conn_destroy(c);
#else
    end_conn(c);
#endif
    ended++;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    signal(SIGALRM, on_alarm);
    struct itimerval t = {{0, 3000}, {0, 3000}};
    setitimer(ITIMER_REAL, &t, 0);
    int n = 0;
    struct conn *active;
    busy = 1;
    active = open_conn(EPOLLIN);
    for (int i = 0; i < 150; i++) {
        busy = 1;
        if (!idle)
            idle = open_conn(EPOLLIN);
        poke(active->peer);
        busy = 0;
        struct epoll_event e[4];
        int k = epoll_wait(EP, e, 4, 20);
        for (int j = 0; j < k; j++)
            n++, take(active->fd);
        k = epoll_wait(EP, e, 4, 5);
    }
    struct itimerval off = {0};
    setitimer(ITIMER_REAL, &off, 0);
    say("correct; events %d, ended by signals %d", n, ended);
    hold();
}
