// CORRECT: a slot is registered without a session, which is made at its first event (lazily) and handled; hang-ups are
// answered by another function, which ends the slot. malloc gives a new slot's session the memory of an ended one's
#define NOPOOL
#include "conns.h"
struct sess {
    int state;
    char b[20];
};
struct k {
    struct sess *s;
    int fd, peer;
};
static struct k pool[512];
static unsigned used;
NI struct k *k_create(void) {
    struct k *c = &pool[used++ % 512];
    c->s = used <= 8 ? calloc(1, sizeof *c->s) : 0; /* the first ones at once */
    makepair(&c->fd, &c->peer);
    asm volatile("" : "+r"(c));
    return c;
}
NI void k_destroy(struct k *c) {
    free(c->s);
    c->s = 0;
    asm volatile("" ::: "memory");
}
static int handled, hung;
NI void on_event(struct sess *s) {
    asm volatile("" ::: "memory");
    s->state++;
    handled++;
}
static void on_hup(struct k *c) {
    del(c->fd);
    close(c->fd);
    k_destroy(c);
    hung++;
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    for (int r = 0; r < 40; r++) {
        struct k *a = k_create();
        add(a->fd, EPOLLIN, a);
        for (int turn = 0; turn < 2; turn++) {
            if (turn)
                close(a->peer);
            else
                poke(a->peer);
            struct epoll_event e[8];
            int n = wait_ms(50, e, 8);
            for (int i = 0; i < n; i++) {
                struct k *c = e[i].data.ptr;
                if (e[i].events & EPOLLHUP) {
                    on_hup(c);
                    continue;
                }
                take(c->fd);
                if (!c->s)
                    c->s = calloc(1, sizeof *c->s);
                on_event(c->s);
            }
        }
    }
    say("correct; handled %d, hung up %d", handled, hung);
    hold();
}
