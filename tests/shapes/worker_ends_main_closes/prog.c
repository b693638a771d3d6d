// CORRECT: a reload: the loop's own thread hands its connections to helpers that give them back and end; it joins them
// and closes the descriptors before it waits again, so nobody waits meanwhile
#include "conns.h"
static struct conn *mine[8];
static int fds[8], peers[8];
static void *helper(void *arg) {
    int from = (intptr_t)arg;
    for (int i = from; i < from + 4; i++)
        conn_destroy(mine[i]);
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0;
    for (int r = 0; r < 10; r++) {
        for (int i = 0; i < 8; i++) {
            mine[i] = open_conn(EPOLLIN);
            fds[i] = mine[i]->fd;
            peers[i] = mine[i]->peer;
            poke(peers[i]);
        }
        struct epoll_event e[16];
        n += wait_ms(50, e, 16);
        for (int i = 0; i < 8; i++)
            take(fds[i]);
        pthread_t t[2];
        pthread_create(&t[0], 0, helper, (void *)0);
        pthread_create(&t[1], 0, helper, (void *)4);
        pthread_join(t[0], 0);
        pthread_join(t[1], 0);
        for (int i = 0; i < 8; i++) {
            close(fds[i]);
            close(peers[i]);
        }
        wait_ms(10, e, 16);
    }
    say("correct; events %d", n);
    hold();
}
