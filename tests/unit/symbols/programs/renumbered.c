/* Connections whose description outlives their close, and a second thread that takes each number as soon as it
 * is free: what the close did must be known before the destroy that follows it on the first thread. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SLOTS 64

struct conn {
	struct conn *next;
	int fd;
	char rest[40];
};

static struct conn slots[SLOTS];
static struct conn *head;
static volatile int stop;

__attribute__((noinline)) struct conn *conn_create(void)
{
	struct conn *c = head;
	head = c->next;
	c->next = 0;
	return c;
}

__attribute__((noinline)) void conn_destroy(struct conn *c)
{
	c->next = head;
	head = c;
}

static void *take_numbers(void *source)
{
	while (!stop) {
		int number = dup((int)(intptr_t)source);
		if (number >= 0)
			close(number);
	}
	return 0;
}

int main(int argc, char **argv)
{
	int lives = argc > 1 ? atoi(argv[1]) : 1000;
	int epoll = epoll_create1(0), source = eventfd(0, 0);
	for (int i = 0; i < SLOTS; i++)
		conn_destroy(&slots[i]);
	puts("ready");
	fflush(stdout);
	getchar();
	/* a close that does not happen; the registration ends right after the destroy: in order */
	struct conn *first = conn_create();
	struct epoll_event watched = {.events = EPOLLIN, .data.ptr = first};
	first->fd = eventfd(0, 0);
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, first->fd, &watched) || dup2(-1, first->fd) >= 0)
		return 1;
	conn_destroy(first);
	close(first->fd);

	pthread_t other;
	pthread_create(&other, 0, take_numbers, (void *)(intptr_t)source);
	int kept = -1;
	for (int i = 0; i < lives; i++) {
		struct conn *c = conn_create(); /* the one before, whose registration still exists */
		if (kept >= 0)
			close(kept);
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
		c->fd = eventfd(0, 0);
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
			return 1;
		kept = dup(c->fd);
		close(c->fd);
		conn_destroy(c);
		if (i % 2)
			usleep(1000);
	}
	conn_create();
	close(kept);
	stop = 1;
	pthread_join(other, 0);
	puts("done");
	fflush(stdout);
	getchar();
	return 0;
}
