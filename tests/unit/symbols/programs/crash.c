// A server's crash in one file: slots from an intrusive free list, their addresses as epoll userdata, an
// event that is dispatched after its slot was destroyed. argv[1]: "stale", "twice" or what SHAPES below call the
// machine code that dispatches. Prints the truth.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

struct session { char name[0x2f8]; int state; int socket; };
struct conn {
    union { struct session *session; struct conn *next_free; } u;
    struct conn *next;
    uint64_t life;
    int fd;
};
struct pool { long capacity; struct conn *free_conns; struct conn slots[8]; };
struct server { int epfd; struct pool *pool; struct conn *active; };

static __attribute__((noinline)) struct conn *conn_create(struct pool *pool)
{
    struct conn *conn = pool->free_conns;
    pool->free_conns = conn->u.next_free;
    return conn;
}

static __attribute__((noinline)) void conn_destroy(struct pool *pool, struct conn *conn)
{
    conn->u.next_free = pool->free_conns;
    pool->free_conns = conn;
}

static inline int session_state(const struct session *s) { return __atomic_load_n(&s->state, __ATOMIC_ACQUIRE); }

// What optimizers make of `conn->u.session->state`, written out: each takes the slot in rdi and faults at 0x2f8.
#define SHAPE(name, text) \
    __attribute__((naked, noinline)) static int name(struct conn *conn) \
    { (void)conn; __asm__ volatile(text "mov 0x2f8(%rax), %eax\n ret"); }
#if defined(__x86_64__)
// the load overwrites its own base; a copy of the base is left
SHAPE(own_base, "mov %rdi, %rax\n test %rax, %rax\n je 1f\n mov (%rax), %rax\n 1: ")
// the same, and the base may have been null: nothing is loaded from there
SHAPE(null_base, "xor %eax, %eax\n test %rdi, %rdi\n je 1f\n mov %rdi, %rax\n 1: mov (%rax), %rax\n ")
// the pointer may have been a null of another way, which the slot's link looks like
SHAPE(null_way, "xor %eax, %eax\n test %rdi, %rdi\n je 1f\n mov (%rdi), %rax\n 1: ")
// nothing is left of the base
SHAPE(lost_base, "mov %rdi, %rax\n xor %edi, %edi\n mov (%rax), %rax\n ")
#endif
static const struct { const char *name; int (*dispatch)(struct conn *); } SHAPES[] = {
#if defined(__x86_64__)
    {"own_base", own_base}, {"null_base", null_base}, {"null_way", null_way}, {"lost_base", lost_base},
#endif
    {0, 0},
};
static int (*shape)(struct conn *);

static __attribute__((noinline)) int run(struct server *server)
{
    struct epoll_event events[16];
    int ready = 0;
    int n = epoll_wait(server->epfd, events, 16, 1000);
    for (int i = 0; i < n; i++) {
        struct conn *conn = events[i].data.ptr;
        if (shape ? shape(conn) : session_state(conn->u.session) == 1) ready++;
    }
    return ready;
}

int main(int argc, char **argv)
{
    struct server server = { epoll_create1(0), calloc(1, sizeof(struct pool)), NULL };
    struct pool *pool = server.pool;
    pool->capacity = 8;
    struct conn *held[3];
    int ends[2];
    if (pipe(ends)) return 2;
    for (int i = 7; i >= 0; i--) conn_destroy(pool, &pool->slots[i]);
    while (pool->free_conns->u.next_free->u.next_free->u.next_free) { // keep three
        struct conn *conn = conn_create(pool);
        conn->u.session = calloc(1, sizeof(struct session));
        conn->next = server.active;
        server.active = conn;
    }
    for (int i = 0; i < 3; i++) {
        held[i] = conn_create(pool);
        held[i]->u.session = calloc(1, sizeof(struct session));
        held[i]->life = 7 + i;
    }
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = held[0] };
    epoll_ctl(server.epfd, EPOLL_CTL_ADD, ends[0], &event);
    if (write(ends[1], "x", 1) != 1) return 2;
    int twice = argc > 1 && !strcmp(argv[1], "twice");
    for (int i = 0; argc > 1 && SHAPES[i].name; i++) if (!strcmp(argv[1], SHAPES[i].name)) shape = SHAPES[i].dispatch;
    conn_destroy(pool, held[0]); // the list is empty: its link is null
    if (twice) conn_destroy(pool, held[0]);
    conn_destroy(pool, held[1]);
    printf("slot=%p pool=%p free=2 live=5\n", (void *)held[0], (void *)pool);
    fflush(stdout);
    if (twice) held[0]->u.session = NULL, conn_destroy(pool, held[0]), conn_destroy(pool, held[0]);
    run(&server);
    if (twice) abort();
    return 0;
}
