/* Slots that are nowhere as pointers: an index says which one is meant, and the debug information computes
 * the address. Prints "D address" before every destroy. */
#include <stdio.h>
#include <stdlib.h>

struct conn {
	struct conn *next;
	long pad[5];
};

struct pool {
	long count;
	struct conn conns[16];
};

long uses[16];
struct conn fixed[16];

static inline __attribute__((always_inline)) void conn_destroy(struct conn *c, unsigned long index)
{
	uses[index] += 1;
}

__attribute__((noinline)) void in_pool(struct pool *pool, unsigned long index)
{
	printf("D %p\n", (void *)&pool->conns[index]);
	conn_destroy(&pool->conns[index], index);
	pool->count++;
}

__attribute__((noinline)) void in_table(unsigned long index)
{
	printf("D %p\n", (void *)&fixed[index]);
	conn_destroy(&fixed[index], index);
	uses[0]--;
}

__attribute__((noinline)) void narrow(struct pool *pool, int index)
{
	printf("D %p\n", (void *)&pool->conns[index]);
	conn_destroy(&pool->conns[index], (unsigned long)(long)index);
	pool->count++;
}

int main(void)
{
	setvbuf(stdout, 0, _IONBF, 0);
	struct pool *pool = calloc(1, sizeof(*pool));
	for (int i = 0; i < 5; i++) {
		in_pool(pool, 2 * i);
		in_table(3 * i);
		narrow(pool, 15 - i);
	}
	return pool->count != 10;
}
