/* So many times the same bad close, removal after close, or double destroy, from one call site; then one of the other kind. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct conn { struct conn *next; int fd; };
static struct conn conns[1 << 16], *last;

__attribute__((noinline)) struct conn *conn_create(void)
{
	static int made;
	struct conn *c = &conns[made++];
	__asm__ volatile("" : : "r"(c) : "memory");
	return c;
}

__attribute__((noinline)) void conn_destroy(struct conn *c)
{
	last = c;
	__asm__ volatile("" : : "r"(c) : "memory");
}

static int ep;

/* A life in order, but that it may be destroyed twice. */
static struct conn *ended(int destroys)
{
	struct conn *c = conn_create();
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
	c->fd = eventfd(1, 0);
	epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event);
	epoll_wait(ep, &event, 1, -1);
	epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, 0);
	close(c->fd);
	for (int i = 0; i < destroys; i++)
		conn_destroy(c);
	return c;
}

__attribute__((noinline)) static void close_again(struct conn *c, int times)
{
	for (int i = 0; i < times; i++)
		close(c->fd);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	int times = argc > 2 ? atoi(argv[2]) : 1, closes = argc > 1 && !strcmp(argv[1], "closes");
	struct epoll_event event;
	char byte;
	ep = epoll_create1(0);
	puts("ready");
	fflush(stdout);
	if (read(0, &byte, 1) != 1)
		return 1;
	if (argc > 1 && !strcmp(argv[1], "lives")) { /* each at an address of its own; then one that ends twice */
		while (times--)
			ended(1);
		if (read(0, &byte, 1) != 1)
			return 1;
		ended(2);
		epoll_wait(ep, &event, 1, 0);
		return read(0, &byte, 1) != 0;
	}
	if (argc > 1 && !strcmp(argv[1], "bursts")) { /* told again and again, until its worker comes to read; or never */
		struct conn *c = conn_create();
		c->fd = eventfd(1, 0);
		event = (struct epoll_event){.events = EPOLLIN, .data.ptr = c};
		epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event);
		double longest = 0, began = 0;
		for (int i = 0; i < times; i++) {
			unsigned long long one = 1;
			began = now();
			for (int j = 0; j < 700; j++)
				epoll_wait(ep, &event, 1, -1);
			longest = now() - began > longest ? now() - began : longest;
			if (read(c->fd, &one, 8) != 8 || write(c->fd, &one, 8) != 8)
				return 1;
		}
		printf("%.3f\n", longest);
		fflush(stdout);
		if (read(0, &byte, 1) != 1)
			return 1;
		for (began = now(); now() - began < 2;)
			epoll_wait(ep, &event, 1, -1);
		puts("spun");
		fflush(stdout);
		return read(0, &byte, 1) != 0;
	}
	struct conn *one = ended(1);
	int removals = argc > 1 && !strcmp(argv[1], "removals");
	if (closes)
		close_again(one, times);
	for (int i = 0; removals && i < times; i++)
		epoll_ctl(ep, EPOLL_CTL_DEL, one->fd, 0);
	for (int i = 0; i < (closes || removals ? 1 : times); i++)
		ended(2);
	if (!closes)
		close_again(one, 1);
	epoll_wait(ep, &event, 1, 0);
	puts("done");
	fflush(stdout);
	return read(0, &byte, 1) != 0;
}
