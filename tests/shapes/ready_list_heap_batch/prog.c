// CORRECT, as sd-event: one function waits, with an array on the heap, and only puts the objects on a list of what is
// ready; the loop runs the handlers of that list. The first handler ends another ready object and takes it off the list.
#include "conns.h"
static struct epoll_event *events;
static struct conn *ready_list[64];
static int nready;
static struct conn *victim;
static int handled;
NI void poll_once(void) {
    int k = wait_ms(200, events, 64);
    nready = 0;
    for (int i = 0; i < k; i++)
        ready_list[nready++] = events[i].data.ptr;
}
NI void unready(struct conn *c) {
    for (int i = 0; i < nready; i++)
        if (ready_list[i] == c)
            ready_list[i] = 0;
}
NI void on_event(struct conn *c) {
    take(c->fd);
    handled++;
    if (victim && victim != c) {
        struct conn *v = victim;
        victim = 0;
        unready(v);
        end_conn(v);
    }
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    events = calloc(64, sizeof *events);
    ready();
    for (int i = 0; i < 30; i++) {
        struct conn *a = open_conn(EPOLLIN), *b = open_conn(EPOLLIN);
        poke(a->peer);
        poke(b->peer);
        victim = b;
        poll_once();
        for (int j = 0; j < nready; j++)
            if (ready_list[j])
                on_event(ready_list[j]);
        end_conn(a);
    }
    say("correct; handled %d", handled);
    hold();
}
