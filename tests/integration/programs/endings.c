/* One connection's life; when standard input ends, an end of the kind that the argument names. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

struct conn { struct conn *next; int fd; };
static struct conn *pool;
static struct conn spare;

__attribute__((noinline)) struct conn *conn_create(void)
{
	struct conn *c = pool ? pool : &spare;
	pool = c->next;
	__asm__ volatile("" : : "r"(c) : "memory");
	return c;
}

__attribute__((noinline)) void conn_destroy(struct conn *c)
{
	c->next = pool;
	pool = c;
	__asm__ volatile("" : : "r"(c) : "memory");
}

static sigjmp_buf back;

static void survive(int number)
{
	(void)number;
	siglongjmp(back, 1);
}

static void *last(void *argument)
{
	pthread_join(*(pthread_t *)argument, 0);
	_exit(7);
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "zero";
	int ep = epoll_create1(0), fd = eventfd(1, 0);
	struct conn *c = conn_create();
	c->fd = fd;
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event);
	epoll_wait(ep, &event, 1, -1);
	epoll_ctl(ep, EPOLL_CTL_DEL, fd, 0);
	close(fd);
	conn_destroy(c);
	char byte;
	while (read(0, &byte, 1) > 0)
		;
	struct rlimit none = {0, 0};
	setrlimit(RLIMIT_CORE, &none);
	if (!strcmp(how, "linger"))
		usleep(50000);
	if (!strcmp(how, "three"))
		return 3;
	if (!strcmp(how, "handled")) {
		signal(SIGSEGV, survive);
		for (volatile int i = 0; i < 3; i++)
			if (!sigsetjmp(back, 1))
				*(volatile int *)16 = 1;
	}
	if (!strcmp(how, "fault"))
		*(volatile int *)16 = 1;
	if (!strcmp(how, "abort"))
		abort();
	if (!strcmp(how, "killed"))
		kill(getpid(), SIGKILL);
	if (!strcmp(how, "leaderless")) { /* the main thread is gone before the process ends */
		static pthread_t self, other;
		self = pthread_self();
		pthread_create(&other, 0, last, &self);
		pthread_exit(0);
	}
	return 0;
}
