/* Slots whose destroy has its argument nowhere but in the enclosing function's entry: `c` is dead when the
 * inlined conn_destroy runs. Calls nest (each connection first brings down those below it) and run in two
 * threads. Prints "D address" after every destroy. Waits for a byte on stdin inside the innermost of its
 * first four calls, so that a watcher can find them under way; ends at the second byte. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

struct conn {
	struct conn *next; /* the free-list link */
	long index;
	struct conn *below;
	long wait;
	long pad[4];
};

static struct conn conns[64];
static pthread_t other;
static void *run(void *first);
long freed[64];

/* outside of the compiler's sight: uses every register that a call may use */
__attribute__((noinline)) void say(long index)
{
	char line[32];
	write(1, line, snprintf(line, sizeof(line), "D %p\n", (void *)&conns[index]));
}

__attribute__((noinline)) void hold(void)
{
	char byte;
	if (read(0, &byte, 1) != 1)
		_exit(1);
	pthread_create(&other, 0, run, &conns[32]);
}

static inline __attribute__((always_inline)) void conn_destroy(struct conn *c, long index)
{
	freed[index] = 1;
}

__attribute__((noinline)) void finish(struct conn *c)
{
	long index = c->index;
	if (c->below)
		finish(c->below);
	else if (c->wait)
		hold();
	conn_destroy(c, index);
	say(index);
	__asm__ volatile("" ::: "memory"); /* no tail call */
}

static void *run(void *first)
{
	for (long i = 0; i < 32; i++) { /* chains of four */
		struct conn *c = (struct conn *)first + i;
		c->index = c - conns;
		c->below = i % 4 ? c - 1 : 0;
	}
	for (long i = 3; i < 32; i += 4)
		finish((struct conn *)first + i);
	return 0;
}

int main(void)
{
	char byte;
	conns[0].wait = 1;
	write(1, "ready\n", 6);
	run(conns);
	pthread_join(other, 0);
	return read(0, &byte, 1) != 1;
}
