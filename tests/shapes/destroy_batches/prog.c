// CORRECT: the loop removes and closes; a pool of threads destroys the slots later, 32 at a time; they are
// used again
#include "conns.h"
static struct conn *full[64][32];
static int head, tail, done;
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cv = PTHREAD_COND_INITIALIZER;
static void *reaper(void *arg) {
    for (;;) {
        pthread_mutex_lock(&m);
        while (head == tail && !done)
            pthread_cond_wait(&cv, &m);
        int mine = head == tail ? -1 : head++;
        pthread_mutex_unlock(&m);
        if (mine < 0)
            return 0;
        for (int i = 0; i < 32; i++)
            conn_destroy(full[mine][i]);
    }
}
int main(void) {
    EP = epoll_create1(EPOLL_CLOEXEC);
    ready();
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&t[i], 0, reaper, 0);
    int n = 0;
    for (int r = 0; r < 30; r++) {
        for (int i = 0; i < 32; i++) {
            struct conn *c = open_conn(EPOLLIN);
            poke(c->peer);
            n += deliveries_of(c, 50);
            del(c->fd);
            close(c->fd);
            close(c->peer);
            full[r][i] = c;
        }
        pthread_mutex_lock(&m);
        tail++;
        pthread_cond_signal(&cv);
        pthread_mutex_unlock(&m);
    }
    pthread_mutex_lock(&m);
    done = 1;
    pthread_cond_broadcast(&cv);
    pthread_mutex_unlock(&m);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], 0);
    say("correct; events %d", n);
    hold();
}
