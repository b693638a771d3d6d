// CORRECT: close_range() over registered descriptors with unrelated ones and holes between them; those
// outside go on
#include "conns.h"
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int r = 0; r < 10; r++) {
        struct conn *low = open_conn(EPOLLIN), *c[8];
        int between[8];
        for (int i = 0; i < 8; i++) {
            c[i] = open_conn(EPOLLIN);
            between[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        }
        struct conn *high = open_conn(EPOLLIN);
        for (int i = 0; i < 8; i += 3)
            close(between[i]);
        if (syscall(SYS_close_range, c[0]->fd, high->fd - 1, 0))
            abort();
        for (int i = 0; i < 8; i++)
            conn_destroy(c[i]);
        poke(low->peer);
        n += deliveries_of(low, 50);
        end_conn(low);
        poke(high->peer);
        n += deliveries_of(high, 50);
        end_conn(high);
    }
    say("correct; events %d", n);
    hold();
}
