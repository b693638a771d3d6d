// A small HTTP/1.1 keep-alive server in C: one level-triggered epoll loop with slot addresses as userdata,
// slots from an intrusive free list, answers by worker threads. Listens on 127.0.0.1 only. See README.md.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "cserver_conn.h"
#include "cserver_options.h"
#include "cserver_truth.h"

enum { USERDATA_LISTENER, USERDATA_WAKE, USERDATA_SIGNAL, RESERVED };
enum { MAX_EVENTS = 128, MAX_HELD = 4096 };

struct held {  // a description that lives on after its connection
    int fd;
    unsigned life;
    const struct conn *slot;
    uint64_t since_ns;
};

static struct server {
    int epoll, listener, wake, signals;
    struct conn_pool pool;
    struct held held[MAX_HELD];
    unsigned held_count;
    uint64_t refused;
    const struct conn *finished;
    pthread_mutex_t lock;  // the two queues
    pthread_cond_t work;
    struct conn *todo[1 << 14];
    unsigned todo_head, todo_tail;
    struct conn *done;
    _Atomic unsigned eligible[BUGS], applied[BUGS];
} server = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER};

static uint64_t now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static bool due(enum bug bug) {
    if (!options.bugs[bug]) return false;
    if (atomic_fetch_add(&server.eligible[bug], 1) % options.every != options.every - 1) return false;
    return atomic_fetch_add(&server.applied[bug], 1) < options.limit;
}

static int control(int operation, int fd, uint32_t events, uint64_t userdata) {
    struct epoll_event event = {.events = events, .data.u64 = userdata};
    return epoll_ctl(server.epoll, operation, fd, &event) == 0 ? 0 : errno;
}

static void wake_loop(void) {
    uint64_t one = 1;
    if (write(server.wake, &one, sizeof one) < 0) die("eventfd: %s", strerror(errno));
}

// -- a connection's end -----------------------------------------------------------------------------

static void conn_unregister(struct conn *c) {
    int error = control(EPOLL_CTL_DEL, c->fd, 0, 0);
    truth_removed(c, error);
    c->registered = false;
}

static void conn_close(struct conn *c) {
    uint64_t batch = truth_closing(c);
    int error = close(c->fd) == 0 ? 0 : errno;
    truth_closed(c, error, batch);
}

static void conn_retire(struct conn *c) {
    atomic_store(&c->session->state, SESSION_RETIRED);
}

static void conn_hold(const struct conn *c, int fd) {
    if (server.held_count == MAX_HELD) die("more than %d descriptors are kept", MAX_HELD);
    server.held[server.held_count++] = (struct held){fd, truth_life(c), c, now()};
}

// An assertion of the program itself: no access faults, and abort() has other things in its registers.
__attribute__((noinline)) static void check_finished(const struct conn *c) {
    if (c->session == NULL) abort();
    server.finished = c;
}

static void conn_finish(struct conn *c) {
    struct session *s = c->session;
    conn_retire(c);
    if (!c->worker_closed) {
        if (s->kept_fd >= 0)
            conn_hold(c, s->kept_fd);  // the bug: close() alone does not end this registration
        else if (c->registered)
            conn_unregister(c);
        conn_close(c);
    }
    free(s);
    truth_destroyed(c);
    conn_destroy(&server.pool, c);
    if (options.bugs[ASSERT_AFTER_DESTROY]) {
        check_finished(c);  // the bug: what destroy left is not the program's to read
        server.finished = c;
    }
}

// Closes what outlived its connection: of that slot, or everything that is old enough.
static void release_held(const struct conn *slot, uint64_t before_ns) {
    for (unsigned i = 0; i < server.held_count;) {
        struct held *h = &server.held[i];
        if (slot != NULL ? h->slot == slot : h->since_ns < before_ns) {
            truth_dup_closing(h->life);
            close(h->fd);
            *h = server.held[--server.held_count];
        } else {
            i++;
        }
    }
}

// -- a connection's begin ---------------------------------------------------------------------------

static int conn_setup(struct conn *c) {
    // An epoll instance cannot watch itself: EINVAL, as when a limit is hit.
    int watched = due(DOUBLE_DESTROY) ? server.epoll : c->fd;
    int error = control(EPOLL_CTL_ADD, watched, EPOLLIN, (uintptr_t)c);
    truth_added(c, error);
    if (error != 0) {
        free(c->session);
        truth_destroyed(c);
        conn_destroy(&server.pool, c);
        return error;
    }
    c->registered = true;
    c->interest = EPOLLIN;
    return 0;
}

static void accept_one(int fd, const struct sockaddr_in *peer) {
    struct conn *c = conn_create(&server.pool);
    if (c == NULL) {
        server.refused++;
        close(fd);
        return;
    }
    truth_created(c, fd);
    struct session *s = calloc(1, sizeof *s);
    if (s == NULL) die("out of memory");
    s->kept_fd = -1;
    atomic_init(&s->state, SESSION_IDLE);
    c->session = s;
    c->fd = fd;
    c->registered = false;
    c->worker_closed = false;
    c->opened_ns = now();
    c->peer.address = ntohl(peer->sin_addr.s_addr);
    c->peer.port = ntohs(peer->sin_port);
    if (conn_setup(c) == 0) return;
    // The bug: conn_setup() has given the slot back already.
    struct conn *link = c->next_free;
    truth_destroyed(c);
    conn_destroy(&server.pool, c);
    close(fd);
    if (options.survive) {  // put the list right: the slot is its last one
        c->next_free = link;
        server.pool.in_use++;
    }
}

static void accept_all(void) {
    for (;;) {
        struct sockaddr_in peer = {0};
        socklen_t length = sizeof peer;
        int fd = accept4(server.listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        accept_one(fd, &peer);
    }
}

// -- requests ---------------------------------------------------------------------------------------

static void submit(struct conn *c) {
    atomic_store(&c->session->state, SESSION_BUSY);
    pthread_mutex_lock(&server.lock);
    unsigned size = sizeof server.todo / sizeof server.todo[0];
    if (server.todo_tail - server.todo_head == size) die("the queue is full");
    server.todo[server.todo_tail++ % size] = c;
    pthread_cond_signal(&server.work);
    pthread_mutex_unlock(&server.lock);
}

// Takes a whole request out of the input. Without one, false.
static bool parse(struct session *s) {
    char *end = memmem(s->input, s->used, "\r\n\r\n", 4);
    if (end == NULL) {
        if (s->used < sizeof s->input) return false;
        end = s->input + s->used - 4;
        s->broken_request = true;
    }
    end += 4;
    s->header_count = 0;
    for (char *at = s->input; at < end - 2 && s->header_count < 16;) {
        char *line_end = memmem(at, (size_t)(end - at), "\r\n", 2);
        if (line_end == NULL) break;
        s->headers[s->header_count++] = (struct header_view){(uint16_t)(at - s->input), (uint16_t)(line_end - at)};
        at = line_end + 2;
    }
    char line[sizeof s->target + 16] = "";
    size_t length = s->headers[0].length < sizeof line - 1 ? s->headers[0].length : sizeof line - 1;
    memcpy(line, s->input, length);
    if (sscanf(line, "GET %127s HTTP/1.", s->target) != 1) s->broken_request = true;
    s->close_after = s->broken_request || memmem(s->input, (size_t)(end - s->input), "Connection: close", 17);
    s->used -= (unsigned)(end - s->input);
    memmove(s->input, end, s->used);
    return true;
}

static void arm(struct conn *c, uint32_t interest) {
    if (c->interest == interest || !c->registered) return;
    truth_modified(c, control(EPOLL_CTL_MOD, c->fd, interest, (uintptr_t)c));
    c->interest = interest;
}

// Reads until a request is whole, the peer is done or nothing is there.
static void conn_read(struct conn *c) {
    struct session *s = c->session;
    while (s->used < sizeof s->input) {
        ssize_t n = read(c->fd, s->input + s->used, sizeof s->input - s->used);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) {
            s->peer_done = true;
            break;
        }
        s->used += (unsigned)n;
    }
    if (parse(s))
        submit(c);
    else if (s->peer_done)
        conn_finish(c);
    else
        arm(c, EPOLLIN);
}

static void conn_event(struct conn *c, uint32_t events) {
    switch (session_state(c->session)) {
    case SESSION_IDLE:
        conn_read(c);
        break;
    case SESSION_BUSY:
        if (c->worker_closed || !c->registered) break;
        if (events & (EPOLLHUP | EPOLLERR))
            conn_unregister(c);
        else
            arm(c, 0);  // level-triggered: not again before the answer is out
        break;
    default:
        break;
    }
}

static void conn_answered(struct conn *c) {
    struct session *s = c->session;
    s->requests++;
    if (s->close_after || (s->peer_done && s->used == 0) || c->worker_closed || !c->registered) {
        conn_finish(c);
        return;
    }
    atomic_store(&s->state, SESSION_IDLE);
    conn_read(c);
}

static void take_answered(void) {
    pthread_mutex_lock(&server.lock);
    struct conn *c = server.done;
    server.done = NULL;
    pthread_mutex_unlock(&server.lock);
    while (c != NULL) {
        struct conn *next = c->next_done;
        conn_answered(c);
        c = next;
    }
}

// -- workers ----------------------------------------------------------------------------------------

static void answer(struct conn *c) {
    struct session *s = c->session;
    unsigned delay_us;
    if (sscanf(s->target, "/slow?us=%u", &delay_us) == 1 && delay_us <= 1000000) usleep(delay_us);
    if (strcmp(s->target, "/dup") == 0 && due(DUP_OUTLIVES_CLOSE)) {
        s->kept_fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
        if (s->kept_fd < 0) die("dup: %s", strerror(errno));
        truth_dupped(c, s->kept_fd);
    }
    s->close_after = s->close_after || strcmp(s->target, "/dup") == 0;
    char text[160];
    int length = snprintf(text, sizeof text, "HTTP/1.1 %s\r\nContent-Length: 3\r\n%s\r\nok\n",
                          s->broken_request ? "400 Bad Request" : "200 OK",
                          s->close_after ? "Connection: close\r\n" : "");
    if (send(c->fd, text, (size_t)length, MSG_NOSIGNAL) != length) s->close_after = true;
    if (s->close_after && s->kept_fd < 0 && due(CLOSE_ON_WORKER)) {
        c->worker_closed = true;
        conn_close(c);  // the bug: no DEL, and the loop thread may have an event for it
        if (options.window_us) usleep(options.window_us);
    }
}

static void *worker(void *number) {
    char name[16];
    snprintf(name, sizeof name, "worker-%u", (unsigned)(uintptr_t)number);
    pthread_setname_np(pthread_self(), name);
    for (;;) {
        pthread_mutex_lock(&server.lock);
        while (server.todo_head == server.todo_tail) pthread_cond_wait(&server.work, &server.lock);
        struct conn *c = server.todo[server.todo_head++ % (sizeof server.todo / sizeof server.todo[0])];
        pthread_mutex_unlock(&server.lock);
        if (c == NULL) return NULL;
        answer(c);
        pthread_mutex_lock(&server.lock);
        c->next_done = server.done;
        server.done = c;
        pthread_mutex_unlock(&server.lock);
        wake_loop();
    }
}

// -- the loop ---------------------------------------------------------------------------------------

static void run_loop(uint64_t end_ns) {
    bool stopping = false;
    while (!stopping && now() < end_ns) {
        struct epoll_event events[MAX_EVENTS];
        if (options.bugs[FREE_IN_BATCH]) usleep(options.window_us ? options.window_us : 1000);
        truth_wait_begins();
        int count = epoll_wait(server.epoll, events, MAX_EVENTS, 100);
        if (count < 0 && errno != EINTR) die("epoll_wait: %s", strerror(errno));
        if (count < 0) count = 0;
        truth_wait_ended(events, count, RESERVED);
        bool answered = false;
        for (int i = 0; i < count; i++) {
            uint64_t drained;
            switch (events[i].data.u64) {
            case USERDATA_LISTENER:
                accept_all();
                break;
            case USERDATA_WAKE:
                answered = read(server.wake, &drained, sizeof drained) > 0;
                if (options.bugs[FREE_IN_BATCH]) take_answered();  // the bug: the batch is not over
                break;
            case USERDATA_SIGNAL:
                stopping = true;
                break;
            default:
                if (truth_dispatches(i) || !options.survive)
                    conn_event(events[i].data.ptr, events[i].events);
                else
                    release_held(events[i].data.ptr, 0);
            }
        }
        if (answered) take_answered();
        uint64_t old = (uint64_t)options.hold_ms * 1000000u;
        release_held(NULL, now() > old ? now() - old : 0);
    }
}

static void listen_on(unsigned port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    int on = 1;
    server.listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(server.listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(server.listener, (struct sockaddr *)&address, sizeof address) != 0) die("bind: %s", strerror(errno));
    if (listen(server.listener, 1024) != 0) die("listen: %s", strerror(errno));
    getsockname(server.listener, (struct sockaddr *)&address, &length);
    options.port = ntohs(address.sin_port);
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ending, NULL);

    server.pool.capacity = options.max_conn;
    server.pool.slots = calloc(options.max_conn, sizeof *server.pool.slots);
    if (server.pool.slots == NULL) die("out of memory");
    for (unsigned i = 0; i < options.max_conn; i++)
        server.pool.slots[i].next_free = i + 1 < options.max_conn ? &server.pool.slots[i + 1] : NULL;
    server.pool.head = server.pool.slots;
    server.pool.tail = &server.pool.slots[options.max_conn - 1];
    truth_open(options.truth, options.all, options.survive, server.pool.slots, sizeof(struct conn), options.max_conn);

    server.epoll = epoll_create1(EPOLL_CLOEXEC);
    server.wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    server.signals = signalfd(-1, &ending, SFD_NONBLOCK | SFD_CLOEXEC);
    listen_on(options.port);
    control(EPOLL_CTL_ADD, server.listener, EPOLLIN, USERDATA_LISTENER);
    control(EPOLL_CTL_ADD, server.wake, EPOLLIN, USERDATA_WAKE);
    control(EPOLL_CTL_ADD, server.signals, EPOLLIN, USERDATA_SIGNAL);
    pthread_t threads[64];
    for (unsigned i = 0; i < options.workers; i++)
        if (pthread_create(&threads[i], NULL, worker, (void *)(uintptr_t)i) != 0) die("no thread");
    printf("ready port=%u pid=%d\n", options.port, getpid());
    fflush(stdout);
    pthread_setname_np(pthread_self(), "loop");
    run_loop(now() + (uint64_t)options.duration_s * 1000000000u);

    for (unsigned i = 0; i < options.workers; i++) {
        pthread_mutex_lock(&server.lock);
        server.todo[server.todo_tail++ % (sizeof server.todo / sizeof server.todo[0])] = NULL;
        pthread_cond_signal(&server.work);
        pthread_mutex_unlock(&server.lock);
    }
    for (unsigned i = 0; i < options.workers; i++) pthread_join(threads[i], NULL);
    truth_finish();
    return 0;
}
