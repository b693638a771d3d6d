// Creates that hand on what another function returns, called in every way there is. Their sizes differ, or gcc
// would call one of them instead of the others (-fipa-icf).
#include <stdlib.h>
#define KEEP __attribute__((noinline, noclone, used))
#define GROWS 8

struct conn { struct conn *next; long id; };
volatile long sum;
static struct conn *pool;

KEEP struct conn *plain(void) { return calloc(1, sizeof(struct conn)); }
KEEP struct conn *pooled(void) {
    struct conn *c = pool;
    if (!c) return calloc(1, sizeof *c);
    pool = c->next;
    return c;
}
KEEP struct conn *inner(void) { return calloc(1, sizeof(struct conn) + 8); }
KEEP struct conn *outer(long n) { sum += n; return inner(); }
KEEP struct conn *mixed_inner(void) { return calloc(1, sizeof(struct conn) + 16); }
KEEP struct conn *mixed(struct conn *old) { if (old) return old; return mixed_inner(); }
KEEP struct conn *pointed(void) { return calloc(1, sizeof(struct conn) + 24); }
KEEP struct conn *joined(void) { return calloc(1, sizeof(struct conn) + 32); }
KEEP void conn_destroy(struct conn *c) { c->id = -1; c->next = pool; pool = c; }
KEEP struct conn *known(struct conn *old) { __asm__ volatile("" : "+r"(old)); return old; }
KEEP struct conn *pick(struct conn *old) {
    struct conn *c = known(old);
    if (!c) c = joined();
    sum += (long)c;
    return c;
}

struct conn *(*volatile through)(void) = pointed;

int main(int argc, char **argv) {
    (void)argv;
    conn_destroy(plain());
    for (int i = 0; i < GROWS; i++) { struct conn *c = plain(); sum += c->id; conn_destroy(c); }
    for (int i = 0; i < GROWS; i++) { struct conn *c = pooled(); sum += c->id; conn_destroy(c); }
    struct conn *o = outer(argc);
    conn_destroy(o);
    conn_destroy(mixed(0));
    conn_destroy(pointed());
    conn_destroy(through());
    conn_destroy(pick(argc > 5 ? o : 0));
    return 0;
}
