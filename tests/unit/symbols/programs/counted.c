// Objects that count references, in the ways of C, and destroys that only look like it.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#define KEEP __attribute__((noinline, used))

struct obj { long id; int refs; atomic_int shared; long generation; struct obj *next; pthread_mutex_t lock; };

volatile long sum;
static struct obj *pool;
static int live;

KEEP void plain(struct obj *o) { if (--o->refs) return; sum++; free(o); }
KEEP void last_first(struct obj *o) { if (o->refs-- == 1) { sum++; free(o); } }
KEEP void checked(struct obj *o) { o->refs--; if (o->refs > 0) return; sum++; free(o); }
KEEP void atomic(struct obj *o) { if (atomic_fetch_sub(&o->shared, 1) == 1) { sum++; free(o); } }
KEEP void builtin(struct obj *o) { if (__sync_sub_and_fetch(&o->refs, 1) == 0) { sum++; free(o); } }
KEEP void guarded(struct obj *o) { if (!o) return; sum++; if (--o->refs == 0) { o->next = pool; pool = o; } }
KEEP void locked(struct obj *o) {
    pthread_mutex_lock(&o->lock);
    int left = --o->refs;
    pthread_mutex_unlock(&o->lock);
    if (left == 0) free(o);
}

static inline __attribute__((always_inline)) void unref(struct obj *o) {
    if (atomic_fetch_sub(&o->shared, 1) == 1) { sum++; free(o); }
}
KEEP void by_hand(long n, struct obj *o) { sum += n; unref(o); }
KEEP void at_once(struct obj *o) { unref(o); }

KEEP int refcount_dec_and_test(int *refs) { return --*refs == 0; }
KEEP void by_helper(struct obj *o) { if (!refcount_dec_and_test(&o->refs)) return; sum++; free(o); }
KEEP void helped(struct obj *o) { sum += refcount_dec_and_test(&o->refs); free(o); }

KEEP void always(struct obj *o) { sum++; free(o); }
KEEP void null_is_fine(struct obj *o) { if (!o) return; sum++; free(o); }
KEEP void population(struct obj *o) { if (--live == 0) sum = 0; free(o); }
KEEP void next_life(struct obj *o) { o->generation++; o->next = pool; pool = o; }
KEEP void backwards(struct obj *o) { o->generation--; o->next = pool; pool = o; }
KEEP void by_state(struct obj *o) { if (o->refs == 1) sum++; o->next = pool; pool = o; }

static struct obj *make(void) { struct obj *o = calloc(1, sizeof *o); o->refs = 1; o->shared = 1; return o; }

int main(void) {
    plain(make()); last_first(make()); checked(make()); atomic(make()); builtin(make()); guarded(make()); locked(make());
    by_hand(1, make()); at_once(make());
    by_helper(make()); helped(make());
    always(make()); null_is_fine(make()); population(make()); next_life(make()); backwards(make()); by_state(make());
    return 0;
}
