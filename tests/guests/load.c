/*
 * I/O under which a guest is saved: workers write blocks to a disk, past the page cache, read others back and compare, until a
 * line comes on standard input. `load DISK`.
 *
 * What a block must hold follows from its place and from how often it was written, so that at the end all of the disk is known:
 * `load` compares it once more, prints "right", how many blocks were written and a checksum over the disk, and ends with 0.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 3, BLOCK = 16384, SLOTS = 64, WORDS = BLOCK / 8 };

struct shared {
	volatile int end;
	volatile uint64_t written[WORKERS];
	volatile uint64_t sum[WORKERS];
};

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static uint64_t seed_of(uint64_t worker, uint64_t slot, uint64_t times)
{
	return mix(worker << 56 | slot << 40 | times);
}

static void fail(int worker, int slot, const char *what)
{
	printf("worker %d, block %d: %s\n", worker, slot, what);
	fflush(stdout);
	_exit(1);
}

/* Whether `block` is what was written there the last time. */
static int is_right(const uint64_t *block, uint64_t seed)
{
	for (int at = 0; at < WORDS; at++)
		if (block[at] != mix(seed + at))
			return 0;
	return 1;
}

static void work(int worker, const char *path, struct shared *shared)
{
	/* Each has a copy of its blocks in memory, too, which must be right as well. */
	static uint64_t copies[SLOTS][WORDS] __attribute__((aligned(4096)));
	static uint64_t buffer[WORDS] __attribute__((aligned(4096)));
	static uint64_t times[SLOTS];
	uint64_t state = worker + 1, sum = 0xcbf29ce484222325;
	off_t base = (off_t)worker * SLOTS * BLOCK;
	int fd = open(path, O_RDWR | O_DIRECT);

	if (fd < 0)
		fail(worker, -1, "the disk cannot be opened");
	for (uint64_t round = 0; round < SLOTS || !shared->end; round++) {
		int slot = round < SLOTS ? round : (state = mix(state)) % SLOTS;
		int other = (state = mix(state)) % SLOTS;
		uint64_t seed = seed_of(worker, slot, ++times[slot]);

		for (int at = 0; at < WORDS; at++)
			copies[slot][at] = mix(seed + at);
		if (pwrite(fd, copies[slot], BLOCK, base + (off_t)slot * BLOCK) != BLOCK)
			fail(worker, slot, "cannot be written");
		shared->written[worker]++;
		if (times[other] == 0)
			continue;
		if (pread(fd, buffer, BLOCK, base + (off_t)other * BLOCK) != BLOCK)
			fail(worker, other, "cannot be read");
		if (!is_right(buffer, seed_of(worker, other, times[other])))
			fail(worker, other, "the disk is wrong");
		if (!is_right(copies[other], seed_of(worker, other, times[other])))
			fail(worker, other, "the memory is wrong");
	}
	for (int slot = 0; slot < SLOTS; slot++) {
		if (pread(fd, buffer, BLOCK, base + (off_t)slot * BLOCK) != BLOCK)
			fail(worker, slot, "cannot be read");
		if (!is_right(buffer, seed_of(worker, slot, times[slot])))
			fail(worker, slot, "the disk is wrong at the end");
		for (int at = 0; at < WORDS; at++)
			sum = (sum ^ buffer[at]) * 0x100000001b3;
	}
	shared->sum[worker] = sum;
	_exit(0);
}

int main(int argc, char **argv)
{
	uint64_t written = 0, sum = 0;
	struct shared *shared =
		mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int good = 1, worker;
	char line[16];

	if (argc != 2 || shared == MAP_FAILED)
		return 2;
	for (worker = 0; worker < WORKERS; worker++) {
		pid_t child = fork();

		if (child < 0)
			return 2;
		if (child == 0)
			work(worker, argv[1], shared);
	}
	printf("working\n");
	fflush(stdout);
	if (read(0, line, sizeof(line)) < 1)
		good = 0;
	shared->end = 1;
	for (worker = 0; worker < WORKERS; worker++) {
		int status;

		if (wait(&status) < 0 || status)
			good = 0;
	}
	for (worker = 0; worker < WORKERS; worker++) {
		written += shared->written[worker];
		sum ^= shared->sum[worker];
	}
	printf("%s %lu %016lx\n", good ? "right" : "wrong", written, sum);
	return !good;
}
