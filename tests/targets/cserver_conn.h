// The objects of cserver and their pool: what DWARF shows of it. Sockets and threads are cserver.c's.
#ifndef CSERVER_CONN_H
#define CSERVER_CONN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum session_state {
    SESSION_IDLE = 1,  // the loop reads
    SESSION_BUSY,      // a worker answers
    SESSION_RETIRED,   // about to be freed
};

struct header_view {
    uint16_t start;
    uint16_t length;
};

// What is known of the request under way. Lives on the heap, one per connection.
struct session {
    char target[128];  // path and query of the request
    struct header_view headers[16];
    unsigned header_count;
    unsigned requests;  // answered so far
    _Atomic enum session_state state;
    bool close_after;     // close when this answer is out
    bool peer_done;       // end of stream or a reset was seen
    bool broken_request;  // to be answered with 400
    int kept_fd;          // a second descriptor that a handler keeps, or -1
    unsigned used;        // bytes in input
    char input[2048];
};

// The slot: epoll's userdata is its address.
struct conn {
    union {
        struct session *session;  // while it is a connection
        struct conn *next_free;   // while it is in the pool
    };
    int fd;
    uint32_t interest;         // epoll event mask that is set now
    _Atomic bool worker_closed;  // a worker has closed fd, or is about to
    bool registered;
    uint64_t opened_ns;
    struct conn *next_done;  // in the workers' list of answered connections
    struct {
        uint32_t address;
        uint16_t port;
    } peer;
};

// Free slots wait in line: the one that was freed first is used first, the last one links to nothing.
struct conn_pool {
    struct conn *head;
    struct conn *tail;
    struct conn *slots;
    unsigned capacity;
    unsigned in_use;
};

static inline struct conn *conn_create(struct conn_pool *pool) {
    struct conn *c = pool->head;
    if (c == NULL) return NULL;
    pool->head = c->next_free;
    if (pool->head == NULL) pool->tail = NULL;
    pool->in_use++;
    return c;
}

static inline void conn_destroy(struct conn_pool *pool, struct conn *c) {
    c->next_free = NULL;
    if (pool->tail != NULL)
        pool->tail->next_free = c;
    else
        pool->head = c;
    pool->tail = c;
    pool->in_use--;
}

static inline enum session_state session_state(const struct session *s) {
    return atomic_load_explicit(&s->state, memory_order_acquire);
}

#endif
