// CORRECT: a POSIX message queue in epoll; each event is answered by mq_receive()
#include "conns.h"
#include <mqueue.h>
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    char name[32];
    sprintf(name, "/q%d", getpid());
    struct mq_attr a = {.mq_maxmsg = 4, .mq_msgsize = 16};
    int q = mq_open(name, O_CREAT | O_RDWR | O_NONBLOCK | O_CLOEXEC, 0600, &a);
    if (q < 0)
        abort();
    mq_unlink(name);
    ready();
    struct conn *c = conn_create();
    c->fd = q;
    add(c->fd, EPOLLIN, c);
    int n = 0;
    char b[16];
    for (double end = seconds() + 8; seconds() < end; n++) {
        mq_send(q, "x", 1, 0);
        if (deliveries_of(c, 100) != 1 || mq_receive(q, b, 16, 0) != 1)
            abort();
        usleep(300);
    }
    del(c->fd);
    close(c->fd);
    conn_destroy(c);
    say("correct; events %d", n);
    hold();
}
