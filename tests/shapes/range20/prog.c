// CORRECT: close_range() over 40 registered fds in a row, then the slots are destroyed
#include "t.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c[20];
    int lo = 9999, hi = 0;
    for (int i = 0; i < 20; i++) {
        c[i] = conn_create();
        pairup(c[i]);
        ctl(EPOLL_CTL_ADD, c[i]->fd, EPOLLIN, c[i]);
        if (c[i]->fd < lo)
            lo = c[i]->fd;
        if (c[i]->peer > hi)
            hi = c[i]->peer;
    }
    if (syscall(SYS_close_range, lo, hi, 0))
        abort();
    for (int i = 0; i < 20; i++)
        conn_destroy(c[i]);
    say("correct; closed %d..%d", lo, hi);
    hold();
}
