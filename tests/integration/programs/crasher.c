/* A server of one epoll thread and any number of parked ones that crashes on request. One byte in, one out:
 * e: echo; s: a SIGSEGV it handles and survives; u: SIGUSR1 likewise; t: start and join a thread; c: counters;
 * n: null pointer; a: abort(); o: stack overflow; h: null pointer, whose handler (on its own stack) aborts;
 * w: two threads crash at once; x: execute itself anew.
 * l: let the leader end.
 * argv: parked threads, then any of "zombie" (the leader ends at once), "leave" (at l), "uffd" (there is a page
 * that can never be read). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

struct slot {
	struct slot *next;
	char text[56];
};

static volatile int segv, usr1, eintr, parked, go, leave;
char known_global[64] = "a global that was changed";
static struct slot *known_slot;
static char *blocked;
static char **arguments;
static volatile uintptr_t low = 0x18; /* an address the compiler knows nothing of */

static void survive(int sig)
{
	if (sig == SIGSEGV)
		segv++;
	else
		usr1++;
}

static void die_later(int sig)
{
	(void)sig;
	abort();
}

__attribute__((noinline)) static int park(int depth)
{
	char room[256];
	memset(room, depth, sizeof(room));
	if (depth > 0)
		return park(depth - 1) + room[depth];
	__sync_fetch_and_add(&parked, 1);
	while (depth <= 0)
		pause();
	return room[0];
}

static void *parking(void *arg)
{
	char name[16];
	snprintf(name, sizeof(name), "parked-%ld", (long)arg);
	prctl(PR_SET_NAME, name);
	return (void *)(long)park((long)arg % 7);
}

static void *nothing(void *arg)
{
	return arg;
}

static void *crash_too(void *arg)
{
	while (!go)
		;
	*(volatile int *)low = 1;
	return arg;
}

__attribute__((noinline)) static long overflow(long n)
{
	volatile char room[4096];
	room[n & 4095] = (char)n;
	return n < 0 ? 0 : overflow(n + 1) + room[7];
}

__attribute__((noinline)) static int deref(struct slot *slot)
{
	return *(volatile char *)&slot->text[8];
}

static void handle(int sig, void (*handler)(int), int flags)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
	sigaction(sig, &action, 0);
}

static void serve(int fd, char what)
{
	char answer[128];
	pthread_t id;
	int n = 1;
	answer[0] = what;
	switch (what) {
	case 's': raise(SIGSEGV); break;
	case 'u': raise(SIGUSR1); break;
	case 't':
		pthread_create(&id, 0, nothing, 0);
		pthread_join(id, 0);
		break;
	case 'c': n = snprintf(answer, sizeof(answer), "segv=%d usr1=%d eintr=%d\n", segv, usr1, eintr); break;
	case 'n':
		handle(SIGSEGV, SIG_DFL, 0);
		deref(0);
		break;
	case 'a': abort();
	case 'o':
		handle(SIGSEGV, SIG_DFL, 0);
		overflow(0);
		break;
	case 'h': {
		static char other[65536];
		stack_t stack = {.ss_sp = other, .ss_size = sizeof(other)};
		sigaltstack(&stack, 0);
		handle(SIGSEGV, die_later, SA_ONSTACK);
		deref(0);
		break;
	}
	case 'w':
		handle(SIGSEGV, SIG_DFL, 0);
		pthread_create(&id, 0, crash_too, 0);
		usleep(20000);
		go = 1;
		deref(0);
		break;
	case 'l': leave = 1; break;
	case 'x': execl("/proc/self/exe", arguments[0], "0", (char *)0);
	}
	if (write(fd, answer, n) < 0)
		close(fd);
}

static _Noreturn void loop(void *arg)
{
	struct epoll_event event = {.events = EPOLLIN}, ready[16];
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), ep = epoll_create1(EPOLL_CLOEXEC);
	(void)arg;
	bind(listener, (struct sockaddr *)&address, size);
	listen(listener, 128);
	getsockname(listener, (struct sockaddr *)&address, &size);
	event.data.fd = listener;
	epoll_ctl(ep, EPOLL_CTL_ADD, listener, &event);
	printf("ready port=%d global=%p slot=%p rseq=%ld blocked=%p\n", ntohs(address.sin_port),
	       (void *)known_global, (void *)known_slot, (long)__rseq_offset, (void *)blocked);
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(ep, ready, 16, -1);
		eintr += count < 0;
		for (int i = 0; i < count; i++) {
			int fd = ready[i].data.fd;
			char what;
			if (fd == listener) {
				event.data.fd = accept4(listener, 0, 0, SOCK_CLOEXEC);
				epoll_ctl(ep, EPOLL_CTL_ADD, event.data.fd, &event);
			} else if (read(fd, &what, 1) == 1) {
				serve(fd, what);
			} else {
				close(fd);
			}
		}
	}
}

static void *loop_thread(void *arg)
{
	loop(arg);
}

/* A page whose reading waits for ever: registered, and nobody answers. */
static char *never(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = {.range = {(uintptr_t)page, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range))
		return 0;
	return page;
}

int main(int argc, char **argv)
{
	int zombie = 0, later = 0, wanted = argc > 1 ? atoi(argv[1]) : 0;
	pthread_attr_t small;
	pthread_t id;
	arguments = argv;
	handle(SIGSEGV, survive, 0);
	handle(SIGUSR1, survive, SA_RESTART);
	signal(SIGPIPE, SIG_IGN);
	for (int i = 2; i < argc; i++) {
		zombie |= !strcmp(argv[i], "zombie");
		later |= !strcmp(argv[i], "leave");
		if (!strcmp(argv[i], "uffd"))
			blocked = never();
	}
	strcpy(known_global, "changed at run time");
	known_slot = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	strcpy(known_slot[100].text, "text of a slot");
	known_slot += 100;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (long i = 0; i < wanted; i++)
		pthread_create(&id, &small, parking, (void *)i);
	while (parked < wanted)
		usleep(1000);
	if (!zombie && !later)
		loop(0);
	pthread_create(&id, 0, loop_thread, 0);
	while (later && !leave)
		usleep(1000);
	pthread_exit(0);
}
