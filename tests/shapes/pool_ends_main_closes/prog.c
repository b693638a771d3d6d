// CORRECT: four threads wait on one instance; at the end they are woken, the last one to leave gives all connections
// back, and the main thread joins them and closes instance and descriptors: nobody waits there any more
#include "conns.h"
static struct conn *all[16];
static int fds[16], peers[16], inside = 4, stop, events;
static void *loop(void *arg) {
    while (!__atomic_load_n(&stop, 5)) {
        struct epoll_event e[4];
        int n = wait_ms(20, e, 4);
        for (int i = 0; i < n; i++) {
            struct conn *c = e[i].data.ptr;
            char b;
            if (read(c->fd, &b, 1) == 1)
                __atomic_add_fetch(&events, 1, 5);
        }
    }
    if (!__atomic_sub_fetch(&inside, 1, 5))
        for (int i = 0; i < 16; i++)
            conn_destroy(all[i]);
    return 0;
}
int main(void) {
    for (int r = 0; r < 3; r++) {
        if (!r)
            ready();
        EP = epoll_create1(EPOLL_CLOEXEC);
        stop = 0;
        inside = 4;
        for (int i = 0; i < 16; i++) {
            all[i] = conn_create();
            pairup(all[i]);
            fds[i] = all[i]->fd;
            peers[i] = all[i]->peer;
            fcntl(fds[i], F_SETFL, O_NONBLOCK);
            add(fds[i], EPOLLIN | EPOLLET, all[i]);
        }
        pthread_t t[4];
        for (int i = 0; i < 4; i++)
            pthread_create(&t[i], 0, loop, 0);
        for (int k = 0; k < 5; k++) {
            for (int i = 0; i < 16; i++)
                poke(peers[i]);
            usleep(20000);
        }
        __atomic_store_n(&stop, 1, 5);
        for (int i = 0; i < 4; i++)
            pthread_join(t[i], 0);
        close(EP);
        for (int i = 0; i < 16; i++) {
            close(fds[i]);
            close(peers[i]);
        }
    }
    say("correct; events %d", events);
    hold();
}
