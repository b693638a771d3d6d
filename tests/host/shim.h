/* SPDX-License-Identifier: (MIT OR GPL-2.0-only)
 *
 * What bcc and the kernel give to the C of probes/bpf, for the host: maps as structs of function pointers, and the
 * helpers over the simulated kernel of kernel.h. One CPU; each program runs to its end (a tail call ends it), as on
 * a kernel where no two CPUs are in programs at once.
 */
#include <linux/types.h>
#include "kernel.h"

/* -- the offsets that the loader takes from BTF and tracefs */
#define AF_LINUX_VERSION_CODE 0x61200
#define AF_ASK 1
#define AF_TASK_THREAD 0
#define AF_THREAD_CR2 0
#define AF_THREAD_TRAP 0
#define AF_TASK_MM __builtin_offsetof(struct sim_task, mm)
#define AF_MM_START_CODE __builtin_offsetof(struct sim_mm, start_code)
#define AF_MM_END_CODE __builtin_offsetof(struct sim_mm, end_code)
#define AF_MM_EXE 0 /* nothing is executed here */
#define AF_TASK_FILES __builtin_offsetof(struct sim_task, files)
#define AF_TASK_SIGNAL __builtin_offsetof(struct sim_task, signal)
#define AF_TASK_LEADER __builtin_offsetof(struct sim_task, group_leader)
#define AF_TASK_EXIT __builtin_offsetof(struct sim_task, exit_code)
#define AF_SIGNAL_LIVE __builtin_offsetof(struct sim_signal, live)
#define AF_SIGNAL_FLAGS __builtin_offsetof(struct sim_signal, flags)
#define AF_SIGNAL_EXIT __builtin_offsetof(struct sim_signal, group_exit_code)
#define AF_FILES_FDT __builtin_offsetof(struct sim_files, fdt)
#define AF_FDT_FD __builtin_offsetof(struct sim_fdtable, fd)
#define AF_FDT_MAX __builtin_offsetof(struct sim_fdtable, max_fds)
#define AF_FILE_PRIVATE __builtin_offsetof(struct sim_file, private_data)
#define AF_FILE_EP __builtin_offsetof(struct sim_file, f_ep)
#define AF_FILE_COUNT (s64)__builtin_offsetof(struct sim_file, refs)
#define AF_FILE_REF 0
#define AF_FILE_INODE __builtin_offsetof(struct sim_file, f_inode)
#define AF_INODE_INO __builtin_offsetof(struct sim_inode, i_ino)
#define AF_INODE_MODE __builtin_offsetof(struct sim_inode, i_mode)
#define AF_SOCKET_TYPE 0 /* no file here is a socket */
#define AF_TCP_TAKEN 0
#define AF_ITEM_LINK __builtin_offsetof(struct sim_epitem, fllink)
#define AF_ITEM_FFD __builtin_offsetof(struct sim_epitem, ffd)
#define AF_ITEM_EP __builtin_offsetof(struct sim_epitem, ep)
#define AF_ITEM_EVENT __builtin_offsetof(struct sim_epitem, event)
#define AF_TP_NEWTASK_PID 8
#define AF_TP_NEWTASK_FLAGS 16
#define AF_TP_EXEC_FILENAME 8
#define AF_TP_SIGNAL_SIG 8
#define AF_TP_SIGNAL_CODE 12
#define AF_TP_SIGNAL_PID 16
#define AF_TP_FAULT_ADDRESS 8
#define AF_TP_FAULT_IP 16

/* -- calls between functions that the kernel's verifier looks at apart */
#define AF_CALL(number, name, s) name(s)

/* -- maps */
#define SIM_BUCKETS 64
#define SIM_MAPS 40
#define SIM_NONE (-1)

struct sim_map {
	const char *name, *kind;
	u32 key, value, limit;
	u8 *keys, *values;
	s32 *next;  /* of the bucket, or of the free list */
	u64 *stamp; /* 1 + when it was written; 0: no entry */
	s32 heads[SIM_BUCKETS];
	s32 free, high;
	u32 count;
	u64 clock;
	bool array, lru, kept; /* kept: not emptied between runs, it holds nothing but stacks by their hash */
};

static struct sim_map *sim_maps[SIM_MAPS];
static u32 sim_map_count;

static void sim_register(struct sim_map *m)
{
	m->array = m->kind[0] == 'a' || m->kind[0] == 'p';
	m->lru = m->kind[0] == 'l';
	m->kept = m->name[0] == 's' && m->name[1] == 't'; /* stacks, stack_bytes */
	m->free = SIM_NONE;
	for (u32 i = 0; i < SIM_BUCKETS; i++)
		m->heads[i] = SIM_NONE;
	sim_maps[sim_map_count++] = m;
}

static u32 sim_hash(const u8 *key, u32 size)
{
	u64 hash = 14695981039346656037ull;
	for (u32 i = 0; i + 4 <= size; i += 4)
		hash = (hash ^ *(const u32 *)(key + i)) * 1099511628211ull;
	return (u32)(hash ^ hash >> 29) & (SIM_BUCKETS - 1);
}

static s32 sim_find(struct sim_map *m, const void *key)
{
	s32 at = m->heads[sim_hash(key, m->key)];
	while (at >= 0 && __builtin_memcmp(m->keys + at * m->key, key, m->key))
		at = m->next[at];
	return at;
}

static void *sim_lookup(struct sim_map *m, const void *key)
{
	if (m->array) {
		u32 index = *(const u32 *)key;
		return index < m->limit ? m->values + (u64)index * m->value : 0;
	}
	s32 at = sim_find(m, key);
	return at < 0 ? 0 : m->values + (u64)at * m->value;
}

/* What a deleted element holds may be another's at once on a kernel: nobody may read it. */
#define SIM_POISON 0xdb

static int sim_delete(struct sim_map *m, const void *key)
{
	s32 *link = &m->heads[sim_hash(key, m->key)];
	while (*link >= 0 && __builtin_memcmp(m->keys + *link * m->key, key, m->key))
		link = &m->next[*link];
	s32 at = *link;
	if (at < 0)
		return -2;
	*link = m->next[at];
	__builtin_memset(m->values + (u64)at * m->value, SIM_POISON, m->value);
	m->next[at] = m->free;
	m->stamp[at] = 0;
	m->free = at;
	m->count--;
	return 0;
}

static void sim_evict(struct sim_map *m)
{
	s32 oldest = SIM_NONE;
	for (s32 i = 0; i < m->high; i++)
		if (m->stamp[i] && (oldest < 0 || m->stamp[i] < m->stamp[oldest]))
			oldest = i;
	if (oldest >= 0)
		sim_delete(m, m->keys + oldest * m->key);
}

static int sim_update(struct sim_map *m, const void *key, const void *value, bool only_new)
{
	if (m->array) {
		__builtin_memcpy(sim_lookup(m, key), value, m->value);
		return 0;
	}
	s32 at = sim_find(m, key);
	if (at >= 0 && only_new)
		return -17;
	if (at < 0) {
		if (m->count >= m->limit && m->lru)
			sim_evict(m);
		if (m->count >= m->limit)
			return -7;
		at = m->free >= 0 ? m->free : m->high++;
		if (at == m->free)
			m->free = m->next[at];
		u32 bucket = sim_hash(key, m->key);
		__builtin_memcpy(m->keys + at * m->key, key, m->key);
		m->next[at] = m->heads[bucket];
		m->heads[bucket] = at;
		m->count++;
	}
	m->stamp[at] = ++m->clock;
	__builtin_memcpy(m->values + (u64)at * m->value, value, m->value);
	return 0;
}

static void sim_maps_reset(void)
{
	for (u32 n = 0; n < sim_map_count; n++) {
		struct sim_map *m = sim_maps[n];
		if (m->array || m->kept)
			continue;
		for (s32 i = 0; i < m->high; i++)
			m->stamp[i] = 0;
		for (u32 i = 0; i < SIM_BUCKETS; i++)
			m->heads[i] = SIM_NONE;
		m->free = SIM_NONE;
		m->high = 0;
		m->count = 0;
	}
}

static void sim_tail_call(void *ctx, int index);

#define BPF_F_TABLE(kind_, K, V, name_, n, flags_)                                                              \
	static u8 name_##_keys[(n) * sizeof(K)] __attribute__((aligned(8)));                                    \
	static V name_##_values[n];                                                                             \
	static s32 name_##_next[n];                                                                             \
	static u64 name_##_stamp[n];                                                                            \
	static struct sim_map name_##_map = {.name = #name_, .kind = kind_, .key = sizeof(K),                   \
					     .value = sizeof(V), .limit = (n), .keys = name_##_keys,            \
					     .values = (u8 *)name_##_values, .next = name_##_next,              \
					     .stamp = name_##_stamp};                                           \
	__attribute__((constructor)) static void name_##_ready(void) { sim_register(&name_##_map); }            \
	static V *name_##_lookup(K *k) { return (V *)sim_lookup(&name_##_map, k); }                             \
	static int name_##_update(K *k, V *v) { return sim_update(&name_##_map, k, v, false); }                 \
	static int name_##_insert(K *k, V *v) { return sim_update(&name_##_map, k, v, true); }                  \
	static int name_##_delete(K *k) { return sim_delete(&name_##_map, k); }                                 \
	static const struct {                                                                                   \
		V *(*lookup)(K *);                                                                              \
		int (*update)(K *, V *);                                                                        \
		int (*insert)(K *, V *);                                                                        \
		int (*delete)(K *);                                                                             \
		void (*call)(void *, int);                                                                      \
	} name_ = {name_##_lookup, name_##_update, name_##_insert, name_##_delete, sim_tail_call};

/* -- the urgent ring: one run's messages, each 8-aligned; nobody reads meanwhile */
#define SIM_RING_BYTES (64 * 4096)
#define SIM_MESSAGES 64
static u8 sim_ring[SIM_RING_BYTES] __attribute__((aligned(8)));
static u32 sim_ring_used, sim_message_at[SIM_MESSAGES], sim_messages;

#define BPF_RB_AVAIL_DATA 0
static u64 bpf_ringbuf_query(void *ring, u64 what) { return sim_ring_used; }

static void *bpf_ringbuf_reserve(void *ring, u64 size, u64 flags)
{
	if (sim_ring_used + size > SIM_RING_BYTES || sim_messages >= SIM_MESSAGES)
		return 0;
	void *at = sim_ring + sim_ring_used;
	sim_message_at[sim_messages] = sim_ring_used;
	sim_ring_used += (size + 7) & ~7ull;
	return at;
}

static inline __attribute__((always_inline)) void *af_reserve(void *ring, u64 size, u64 flags);

#define BPF_RINGBUF_OUTPUT(name_, pages_)                                                                       \
	static void *name_##_reserve(u64 size) { return af_reserve(sim_ring, size, 0); }                        \
	static void name_##_submit(void *message, u64 flags) { sim_messages++; }                                \
	static const struct {                                                                                   \
		void *(*ringbuf_reserve)(u64);                                                                  \
		void (*ringbuf_submit)(void *, u64);                                                            \
	} name_ = {name_##_reserve, name_##_submit};

/* -- helpers */
#define BPF_F_USER_STACK 256

static u64 bpf_ktime_get_ns(void) { return ++sim.now; }
static u64 bpf_get_current_pid_tgid(void) { return (u64)sim.current->tgid << 32 | sim.current->pid; }
static u64 bpf_get_current_task(void) { return (u64)sim.current; }
static void *bpf_get_current_task_btf(void) { return sim.current; }
static u64 bpf_task_pt_regs(void *task) { return (u64)&((struct sim_task *)task)->regs; }
static u32 bpf_get_smp_processor_id(void) { return 0; }

static long bpf_get_current_comm(void *to, u32 size)
{
	__builtin_memset(to, 0, size);
	__builtin_memcpy(to, "sim", 4);
	return 0;
}

/* Anything but null pages and list poison is memory: the simulated kernel's, or the program's own. */
static long bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	if ((u64)from < 65536 || (u64)from >> 47) {
		__builtin_memset(to, 0, size);
		return -14;
	}
	__builtin_memcpy(to, from, size);
	return 0;
}

static long bpf_probe_read_kernel_str(void *to, u32 size, const void *from)
{
	u32 i = 0;
	while (i + 1 < size && ((const u8 *)from)[i]) {
		((u8 *)to)[i] = ((const u8 *)from)[i];
		i++;
	}
	((u8 *)to)[i] = 0;
	return i + 1;
}

static long bpf_probe_read_user(void *to, u32 size, const void *from)
{
	u64 at = (u64)from - SIM_USER;
	if (at >= SIM_USER_BYTES || at + size > SIM_USER_BYTES) {
		__builtin_memset(to, 0, size);
		return -14;
	}
	__builtin_memcpy(to, sim.user + at, size);
	return 0;
}

static long bpf_get_stack(void *ctx, void *to, u32 size, u64 flags)
{
	((u64 *)to)[0] = sim.current->regs.ip;
	((u64 *)to)[1] = sim.current->pid;
	return 16;
}
