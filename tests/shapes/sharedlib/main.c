// BUG: the pool is in a shared object (with DL: loaded by dlopen); slots are destroyed while registered
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#ifdef DL
#include <dlfcn.h>
#endif
struct conn {
    struct conn *next;
    int fd;
    int peer;
};
struct conn *conn_create(void);
void conn_destroy(struct conn *);
int main(void) {
#ifdef DL
    void *h = dlopen(getenv("POOL"), RTLD_NOW);
    if (!h)
        return 5;
    struct conn *(*conn_create)(void) = (struct conn * (*)(void)) dlsym(h, "conn_create");
    void (*conn_destroy)(struct conn *) = (void (*)(struct conn *))dlsym(h, "conn_destroy");
#endif
    int ep = epoll_create1(0), stale = 0;
    printf("ready %d\n", getpid());
    fflush(stdout);
    char *go = getenv("GO");
    for (int i = 0; go && i < 12000 && access(go, 0); i++)
        usleep(10000);
    for (int i = 0; i < 5; i++) {
        struct conn *c = conn_create();
        int s[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        struct epoll_event e = {EPOLLIN, {.ptr = c}}, r[4];
        epoll_ctl(ep, EPOLL_CTL_ADD, s[0], &e);
        conn_destroy(c);
        write(s[1], "x", 1);
        int k = epoll_wait(ep, r, 4, 50);
        for (int j = 0; j < k; j++)
            if (r[j].data.ptr == c)
                stale++;
        close(s[0]);
        close(s[1]);
    }
    printf("bug; stale %d\n", stale);
    fflush(stdout);
    usleep(900000);
}
