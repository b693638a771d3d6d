// CORRECT: a library hands out its own epoll descriptor (as libinput, sd-event, wl_event_loop do), which the program
// registers for an object in its own; each event is answered by the library's dispatch: epoll_wait() there and read()
#include "conns.h"
#include <time.h>
static int stop;
static int in[4], out[4];
static void *writer(void *arg) {
    while (!__atomic_load_n(&stop, 5)) {
        for (int i = 0; i < 4; i++)
            write(out[i], "x", 1);
        usleep(50);
    }
    return 0;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    int lib = epoll_create1(EPOLL_CLOEXEC);
    ready();
    struct conn *c = conn_create();
    c->fd = lib;
    for (int i = 0; i < 4; i++) {
        makepair(&in[i], &out[i]);
        struct epoll_event e = {.events = EPOLLIN, .data.u64 = i};
        epoll_ctl(lib, EPOLL_CTL_ADD, in[i], &e);
    }
    add(lib, EPOLLIN, c);
    pthread_t t;
    pthread_create(&t, 0, writer, 0);
    long outer = 0, inner = 0;
    for (double end = seconds() + 8; seconds() < end;) {
        struct epoll_event e[4], f[4];
        int n = wait_ms(100, e, 4);
        outer += n;
        for (int i = 0; i < n; i++) {
            int k = epoll_wait(((struct conn *)e[i].data.ptr)->fd, f, 4, 0);
            for (int j = 0; j < k; j++) {
                char b[64];
                inner += read(in[f[j].data.u64], b, sizeof b) > 0;
            }
        }
    }
    stop = 1;
    pthread_join(t, 0);
    del(lib);
    close(lib);
    conn_destroy(c);
    say("correct; outer events %ld, inner reads %ld", outer, inner);
    hold();
}
