// CORRECT by its generations: userdata has the slot's generation in its high bits; the handler of the first event ends the
// second's object, whose slot is given out again within the batch; the loop compares generations and drops the event
#include "conns.h"
#define TAG(c) ((void *)((uint64_t)(c) | (c)->gen << 48))
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int n = 0, dropped = 0;
    for (int i = 0; i < 20; i++) {
        struct conn *c[2];
        for (int j = 0; j < 2; j++) {
            c[j] = conn_create();
            pairup(c[j]);
            add(c[j]->fd, EPOLLIN, TAG(c[j]));
            poke(c[j]->peer);
        }
        struct epoll_event e[4];
        int k = wait_ms(100, e, 4);
        for (int j = 0; j < k; j++) {
            struct conn *d = (void *)(e[j].data.u64 & 0xffffffffffffull);
            if (d->gen % 65536 != e[j].data.u64 >> 48) {
                dropped++;
                continue;
            }
            n++;
            if (j == 0) {
                struct conn *other = d == c[0] ? c[1] : c[0];
#ifdef TWIN
                int keep = dup(other->fd);
                close(other->fd);
                conn_destroy(other);
                write(d->peer, "y", 1);
#else
                end_conn(other);
#endif
                other = conn_create(); /* the same slot */
                pairup(other);
                add(other->fd, EPOLLIN, TAG(other));
                c[0] = d, c[1] = other;
            }
        }
        end_conn(c[0]);
        end_conn(c[1]);
    }
    say("correct; handled %d, dropped by generation %d", n, dropped);
    hold();
}
