/* Stacks worth unwinding: through libc's qsort, a signal handler (on its own stack), frames without a
 * frame pointer, a realigned frame, alloca, a thread. Stops itself in the innermost frame. */
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile int depth;
static int waiting;

__attribute__((noinline)) static void bottom(void)
{
	if (waiting)
		abort();
	pause();
	depth++;
}

static void handler(int sig)
{
	depth += sig;
	bottom();
	depth++;
}

static int compare(const void *a, const void *b)
{
	raise(SIGUSR1);
	return *(const int *)a - *(const int *)b;
}

__attribute__((noinline)) static int aligned(int n)
{
	_Alignas(64) volatile char wide[128];
	char *more = alloca(n * 16 + 16);
	memset(more, n, n * 16 + 16);
	wide[n] = more[n];
	int values[] = {3, 2, 1};
	qsort(values, 3, sizeof(int), compare);
	return values[0] + wide[n];
}

__attribute__((noinline)) static int recurse(int n)
{
	int found = n ? recurse(n - 1) : aligned(5);
	depth++;
	return found + n;
}

static void *thread(void *arg)
{
	(void)arg;
	sleep(1000);
	return 0;
}

int main(int argc, char **argv)
{
	(void)argv;
	waiting = argc > 1;
	static char other[65536];
	stack_t stack = {.ss_sp = other, .ss_size = sizeof(other)};
	sigaltstack(&stack, 0);
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	sigaction(SIGUSR1, &action, 0);
	pthread_t id;
	pthread_create(&id, 0, thread, 0);
	write(1, "ready\n", 6);
	return recurse(7);
}
