// One name in two files, and one function that is inlined into several.
#include <stdlib.h>
#define KEEP __attribute__((noinline, noclone, used))
struct conn { struct conn *next; long id; };
volatile long sum;
static struct conn *pool;
static inline __attribute__((always_inline)) void conn_destroy(struct conn *c) { sum++; c->next = pool; pool = c; }
KEEP void release(struct conn *c) { sum++; free(c); }
KEEP void on_close(struct conn *c) { conn_destroy(c); }
KEEP void on_error(struct conn *c) { sum--; conn_destroy(c); }
KEEP void at_exit(struct conn *c) { sum = 0; conn_destroy(c); }
int main(void) {
    struct conn a = {0}, b = {0}, c = {0};
    on_close(&a); on_error(&b); at_exit(&c);
    return 0;
}
