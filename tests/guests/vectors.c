/*
 * Two processes on one processor fill their vector registers, yield to each other and look whether the registers still
 * hold what they put there. Prints "same" and ends with 0 if so; 1 if one found the other's values.
 *
 * Uses the upper halves (YMM) where the CPU has them, the lower halves (XMM) where not, and says which.
 */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS = 40, WIDTH = 16 * 32 };

/* Fills all sixteen registers, yields by a system call with nothing between that could spill them, and stores them. */
__attribute__((target("avx"))) static void yield_with_ymm(const unsigned char *in, unsigned char *out)
{
	long number = 24 /* sched_yield */;

#define LOAD(n) "vmovdqu " #n "*32(%[in]), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[out])\n"
	__asm__ volatile(
		LOAD(0) LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5) LOAD(6) LOAD(7)
		LOAD(8) LOAD(9) LOAD(10) LOAD(11) LOAD(12) LOAD(13) LOAD(14) LOAD(15)
		"syscall\n"
		STORE(0) STORE(1) STORE(2) STORE(3) STORE(4) STORE(5) STORE(6) STORE(7)
		STORE(8) STORE(9) STORE(10) STORE(11) STORE(12) STORE(13) STORE(14) STORE(15)
		: "+a"(number) : [in] "r"(in), [out] "r"(out)
		: "memory", "rcx", "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
		  "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void yield_with_xmm(const unsigned char *in, unsigned char *out)
{
	long number = 24;

#define LOADX(n) "movdqu " #n "*16(%[in]), %%xmm" #n "\n"
#define STOREX(n) "movdqu %%xmm" #n ", " #n "*16(%[out])\n"
	__asm__ volatile(
		LOADX(0) LOADX(1) LOADX(2) LOADX(3) LOADX(4) LOADX(5) LOADX(6) LOADX(7)
		LOADX(8) LOADX(9) LOADX(10) LOADX(11) LOADX(12) LOADX(13) LOADX(14) LOADX(15)
		"syscall\n"
		STOREX(0) STOREX(1) STOREX(2) STOREX(3) STOREX(4) STOREX(5) STOREX(6) STOREX(7)
		STOREX(8) STOREX(9) STOREX(10) STOREX(11) STOREX(12) STOREX(13) STOREX(14) STOREX(15)
		: "+a"(number) : [in] "r"(in), [out] "r"(out)
		: "memory", "rcx", "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
		  "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static int keeps_its_values(unsigned char own, int ymm)
{
	unsigned char in[WIDTH], out[WIDTH];
	int round, i, width = ymm ? WIDTH : WIDTH / 2;

	for (round = 0; round < ROUNDS; round++) {
		for (i = 0; i < width; i++)
			in[i] = own ^ (i * 7 + round);
		memset(out, 0, sizeof(out));
		if (ymm)
			yield_with_ymm(in, out);
		else
			yield_with_xmm(in, out);
		if (memcmp(in, out, width)) {
			dprintf(1, "process %02x, round %d: registers changed\n", own, round);
			return 0;
		}
	}
	return 1;
}

int main(void)
{
	int ymm = __builtin_cpu_supports("avx") != 0, status = 0, good;
	struct rusage used;
	pid_t child = fork();

	if (child < 0) {
		perror("fork");
		return 2;
	}
	good = keeps_its_values(child ? 0x5a : 0xa5, ymm);
	if (!child)
		_exit(!good);
	if (waitpid(child, &status, 0) != child || status)
		good = 0;
	getrusage(RUSAGE_SELF, &used);
	if (used.ru_nvcsw + used.ru_nivcsw < 10) {
		puts("the two hardly ever took turns: nothing was proved");
		return 2;
	}
	puts(good ? ymm ? "same ymm" : "same xmm" : "different");
	return !good;
}
