/* A second pool, of another type, whose functions have the names of the first one's. */
#include <stdlib.h>
#include "levels.h"

struct spool { struct session *free; long live; };
static struct spool sessions;

static inline struct session *pool_create(struct spool *pool) {
    struct session *slot = pool->free;
    if (slot) pool->free = slot->next;
    else slot = malloc(sizeof *slot);
    pool->live++;
    return slot;
}
static inline void pool_destroy(struct spool *pool, struct session *slot) {
    slot->next = pool->free;
    pool->free = slot;
    pool->live--;
}
struct session *session_open(int state) {
    struct session *s = pool_create(&sessions);
    s->state = state;
    return s;
}
void session_close(struct session *s) { pool_destroy(&sessions, s); }
