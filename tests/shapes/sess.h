#define NOPOOL
#include "t.h"
struct sess {
    int state;
    char b[20];
};
struct k {
    struct sess *s;
    int fd, peer;
    int dead;
};
NI struct k *k_create(void) {
    struct k *c = calloc(1, sizeof *c);
    c->s = calloc(1, sizeof *c->s);
    int p[2];
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p);
    c->fd = p[0];
    c->peer = p[1];
    asm volatile("" : "+r"(c));
    return c;
}
NI void k_destroy(struct k *c) {
    free(c->s);
    memset(c, 0, sizeof *c);
    free(c);
}
