#include <stdlib.h>
struct conn {
    struct conn *next;
    int fd;
    int peer;
};
static struct conn *fl;
struct conn *conn_create(void) {
    struct conn *c = fl;
    if (c)
        fl = c->next;
    else
        c = calloc(1, sizeof *c);
    __asm__ volatile("" : "+r"(c));
    return c;
}
void conn_destroy(struct conn *c) {
    c->next = fl;
    fl = c;
}
