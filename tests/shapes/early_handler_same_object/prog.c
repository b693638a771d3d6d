// CORRECT: the slots come from a FIFO pool, their sessions from malloc. A handler ends another connection of the batch
// (its entry is nulled) and accepts one, whose session malloc puts where the ended one's was; it is tried before it is
// registered, as nginx does after accept
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
    c->s = calloc(1, sizeof *c->s);
    makepair(&c->fd, &c->peer);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    asm volatile("" : "+r"(c));
    return c;
}
NI void k_destroy(struct k *c) {
    free(c->s);
    c->s = 0;
    asm volatile("" ::: "memory");
}
static int handled;
NI void on_event(struct sess *s) {
    asm volatile("" ::: "memory");
    s->state++;
    handled++;
}
static void end(struct k *c) {
    del(c->fd);
    close(c->fd);
    close(c->peer);
    k_destroy(c);
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    int same = 0;
    for (int r = 0; r < 20; r++) {
        struct k *a = k_create(), *b = k_create();
        add(a->fd, EPOLLIN, a);
        add(b->fd, EPOLLIN, b);
        poke(a->peer);
        poke(b->peer);
        struct epoll_event e[8];
        int n = wait_ms(50, e, 8);
        struct k *fresh = 0;
        for (int i = 0; i < n; i++) {
            struct k *c = e[i].data.ptr;
            if (!c)
                continue;
            on_event(c->s);
            take(c->fd);
            if (i == 0 && r >= 4) {
                struct k *other = c == a ? b : a;
                struct sess *was = other->s;
                for (int j = i + 1; j < n; j++)
                    if (e[j].data.ptr == other)
                        e[j].data.ptr = 0;
                end(other);
                fresh = k_create();
                same += fresh->s == was;
                poke(fresh->peer);
                on_event(fresh->s); /* tried at once */
                take(fresh->fd);
                add(fresh->fd, EPOLLIN, fresh);
                if (other == a)
                    a = fresh;
                else
                    b = fresh;
            }
        }
        end(a);
        end(b);
    }
    say("correct; handled %d, same session memory %d", handled, same);
    hold();
}
