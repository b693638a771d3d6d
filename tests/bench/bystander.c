/* What one system call of a process that nobody watches costs: ns per call of three loops, as JSON.
 * usage: bystander SECONDS-PER-LOOP */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

#define LOOP(call)                                                     \
	({                                                             \
		double begun = now(), at;                              \
		long done = 0;                                         \
		do {                                                   \
			for (int i = 0; i < 1000; i++)                 \
				call;                                  \
			done += 1000;                                  \
			at = now();                                    \
		} while (at - begun < seconds);                        \
		1e9 * (at - begun) / done;                             \
	})

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 0.2;
	int zero = open("/dev/zero", O_RDONLY);
	char byte;
	double getppid_ns = LOOP(syscall(SYS_getppid));
	double read_ns = LOOP(if (read(zero, &byte, 1) != 1) return 1);
	double close_ns = LOOP(if (close(dup(zero))) return 1); /* a dup and a close */
	printf("{\"getppid\": %.1f, \"read\": %.1f, \"dup and close\": %.1f}\n", getppid_ns, read_ns, close_ns);
	return 0;
}
