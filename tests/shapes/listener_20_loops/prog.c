// CORRECT: one datagram socket is registered in 20 instances, each with a slot and a thread of its own; the first one
// added does most of the work, and answers each event by recv()
#include "conns.h"
static int ep[20], sock, other, stop;
static struct conn *own[20];
static long got, events[20];
static void *loop(void *arg) {
    int me = (intptr_t)arg;
    while (!__atomic_load_n(&stop, 5)) {
        struct epoll_event e[4];
        int n = epoll_wait(ep[me], e, 4, 20);
        for (int i = 0; i < n; i++) {
            char b[16];
            events[me]++;
            if (recv(sock, b, sizeof b, MSG_DONTWAIT) > 0)
                __atomic_add_fetch(&got, 1, 5);
        }
        if (me)
            usleep(100000); /* the others are busy with something else */
    }
    return 0;
}
static void *sender(void *arg) {
    while (!__atomic_load_n(&stop, 5)) {
        send(other, "x", 1, MSG_DONTWAIT);
        usleep(30);
    }
    return 0;
}
int main(void) {
    int s[2];
    socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, s);
    sock = s[0];
    other = s[1];
    ready();
    pthread_t t[21];
    for (int i = 0; i < 20; i++) {
        ep[i] = epoll_create1(EPOLL_CLOEXEC);
        own[i] = conn_create();
        struct epoll_event e = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = own[i]};
        if (epoll_ctl(ep[i], EPOLL_CTL_ADD, sock, &e))
            abort();
    }
    for (int i = 0; i < 20; i++)
        pthread_create(&t[i], 0, loop, (void *)(intptr_t)i);
    pthread_create(&t[20], 0, sender, 0);
    sleep(9);
    __atomic_store_n(&stop, 1, 5);
    for (int i = 0; i < 21; i++)
        pthread_join(t[i], 0);
    for (int i = 0; i < 20; i++) {
        epoll_ctl(ep[i], EPOLL_CTL_DEL, sock, 0);
        close(ep[i]);
        conn_destroy(own[i]);
    }
    say("correct; received %ld, events of the first %ld, of the second %ld", got, events[0], events[1]);
    hold();
}
