// Handlers that get the slot itself, something in it, something it points to, or what says nothing.
#include <stdlib.h>
#define KEEP __attribute__((noinline, used))

struct watcher { int fd; void (*cb)(void *); };
struct session { long id; };
struct stranger { long id; };
struct event { void *data; };
struct peer { struct event *read, *write; };
struct slot {
    struct slot *next;  // a list of live slots: no way from a handler's object to its slot
    long pad;
    struct watcher w;
    struct session *session;
};

volatile long sum;
KEEP struct slot *slot_create(void) { struct slot *s = calloc(1, sizeof *s); __asm__ volatile("" : "+r"(s)); return s; }
KEEP void slot_destroy(struct slot *s) { s->next = 0; sum++; free(s); }
KEEP void on_slot(struct slot *s) { sum += s->w.fd; }
KEEP void on_const(const struct slot *const s) { sum += s->w.fd; }
KEEP void on_watcher(struct watcher *w) { sum += w->fd; }
KEEP void on_session(struct session *s) { sum += s->id; }
KEEP void on_stranger(struct stranger *s) { sum += s->id; }
KEEP void on_void(void *arg) { struct slot *s = arg; sum += s->w.fd; }
KEEP void on_void_watcher(void *arg) { struct watcher *w = arg; sum += w->fd; }
KEEP void on_void_late(void *arg, int events) {
    if (!arg || events < 0) return;
    sum += events;
    struct slot *s = arg;
    if (events & 1) sum += s->w.fd;
    s->pad = events;
}
KEEP void on_opaque(void *arg) { sum += (long)arg; }
KEEP void on_next(void *arg) { struct slot *s = ((struct slot *)arg)->next; sum += s->w.fd; }
KEEP void peer_destroy(struct peer *p) { sum++; free(p->read); free(p->write); }
KEEP void on_event(struct event *e) { sum += (long)e->data; }
typedef struct { long id; struct watcher w; } anon_t;
typedef struct slot slot_t;
KEEP anon_t *anon_create(void) { anon_t *a = calloc(1, sizeof *a); __asm__ volatile("" : "+r"(a)); return a; }
KEEP void anon_destroy(anon_t *a) { sum++; free(a); }
KEEP void on_anon(anon_t *a) { sum += a->id; }
KEEP void slot_t_destroy(slot_t *s) { sum++; free(s); }
KEEP void raw_destroy(void *p) { sum++; free(p); }

int main(void) {
    struct slot *s = slot_create();
    struct session session = {1};
    struct stranger stranger = {1};
    s->session = &session;
    s->next = s;
    on_slot(s); on_const(s); on_watcher(&s->w); on_session(s->session); on_stranger(&stranger);
    on_void(s); on_void_late(s, 1); on_void_watcher(&s->w); on_opaque(s); on_next(s);
    slot_destroy(s);
    raw_destroy(slot_create());
    struct event ev = {0};
    on_event(&ev);
    struct peer p = {0, 0};
    peer_destroy(&p);
    on_anon(anon_create());
    anon_destroy(anon_create());
    slot_t_destroy(slot_create());
    return 0;
}
