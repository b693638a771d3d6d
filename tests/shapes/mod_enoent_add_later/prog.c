// CORRECT: upstream objects reconnect and get their old numbers; the loop's change list is applied by MOD for all, and
// what says ENOENT is put on a second list, which is applied by ADD
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c[4];
    int n = 0, missed = 0;
    for (int i = 0; i < 4; i++)
        c[i] = open_conn(EPOLLIN);
    for (int r = 0; r < 10; r++) {
        struct epoll_event e[8];
        for (int i = 0; i < 4; i++)
            poke(c[i]->peer);
        int k = wait_ms(50, e, 8);
        n += k;
        for (int i = 0; i < 4; i++) {
            take(c[i]->fd);
            close(c[i]->fd);
            close(c[i]->peer);
        }
        for (int i = 0; i < 4; i++)
            pairup(c[i]);
        int again[4], m = 0;
        for (int i = 0; i < 4; i++)
            if (ctl(EPOLL_CTL_MOD, c[i]->fd, EPOLLIN, c[i])) {
                missed++;
                again[m++] = i;
            }
        for (int i = 0; i < m; i++)
            add(c[again[i]]->fd, EPOLLIN, c[again[i]]);
    }
    for (int i = 0; i < 4; i++)
        end_conn(c[i]);
    say("correct; events %d, MODs that found nothing %d", n, missed);
    hold();
}
