/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The signals of the first process: SIGCHLD, what busybox's poweroff, halt and reboot send, and SIGINT, which the kernel
 * makes of Ctrl-Alt-Del. Once there is a command all are blocked but for the one wait of `wait_for`, so that none is missed.
 */

#define BIT(signal) (1ul << ((signal) - 1))
#define HANDLED (BIT(2) | BIT(10) | BIT(12) | BIT(15) | BIT(17))

struct kernel_sigaction {
	void (*handler)(int);
	unsigned long flags;
	void (*restorer)(void);
	unsigned long mask;
};

static void __attribute__((naked)) restorer(void)
{
	__asm__ volatile("mov $15, %eax\n syscall");
}

static void handle(int signal, void (*handler)(int))
{
	struct kernel_sigaction action = { handler, 0x04000000 /* SA_RESTORER */, restorer, 0 };

	my_syscall4(__NR_rt_sigaction, signal, &action, 0, sizeof(action.mask));
}

/* SIGCHLD only has to interrupt a wait. */
static void on_child(int signal)
{
	(void)signal;
}

static void on_power_off(int signal)
{
	(void)signal;
	my_syscall0(__NR_sync);
	power_off(0);
}

static void on_reboot(int signal)
{
	(void)signal;
	my_syscall0(__NR_sync);
	reboot(LINUX_REBOOT_CMD_RESTART);
	power_off(0);
}

/* How often the host has asked for the end. */
static volatile int end_wanted;

static void on_ctrl_alt_del(int signal)
{
	(void)signal;
	end_wanted++;
}

static void drain(void);

static void hold_signals(void)
{
	unsigned long mask = HANDLED;

	my_syscall4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &mask, 0, sizeof(mask));
}

static void take_signals(void)
{
	/* Ctrl-Alt-Del is for this process and does not reset the machine. */
	reboot(LINUX_REBOOT_CMD_CAD_OFF);
	handle(2 /* SIGINT: Ctrl-Alt-Del */, on_ctrl_alt_del);
	handle(10 /* SIGUSR1: halt */, on_power_off);
	handle(12 /* SIGUSR2: poweroff */, on_power_off);
	handle(15 /* SIGTERM: reboot */, on_reboot);
	handle(17 /* SIGCHLD */, on_child);
}

struct poll_request {
	int fd;
	short events, revents;
};

/* Waits for something of `poll` (fd -1: of nothing), a signal, or the time. Returns whether it was of `poll`. */
static int wait_for(struct poll_request *poll, const long *time)
{
	static const unsigned long none;
	long limit[2];

	if (time)
		memcpy(limit, time, sizeof(limit));
	return my_syscall5(__NR_ppoll, poll, 1, time ? limit : 0, &none, sizeof(none)) > 0;
}

static long milliseconds(void)
{
	long now[2];

	my_syscall2(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, now);
	return now[0] * 1000 + now[1] / 1000000;
}

/* Waits until there are no other processes (returns 1), another wish for the end, or the millisecond `end`. */
static int wait_for_last(long end, int wishes)
{
	const long slice[2] = { 0, 200000000 };
	struct poll_request nothing = { -1, 0, 0 };

	for (;;) {
		long ended;

		do
			ended = my_syscall4(__NR_wait4, -1, 0, WNOHANG, 0);
		while (ended > 0);
		if (ended < 0)
			return 1;
		if (milliseconds() >= end || (wishes >= 0 && end_wanted > wishes))
			return 0;
		wait_for(&nothing, slice);
	}
}

/*
 * Ends all other processes and the machine: by SIGTERM; after three seconds by SIGHUP, since an interactive shell ends at no
 * other, and `shell` at once; by SIGKILL after six, or when the host asks again.
 */
static void __attribute__((noreturn)) end_politely(int shell)
{
	int wishes = end_wanted;
	long now = milliseconds();

	my_syscall2(__NR_kill, -1, 15 /* SIGTERM */);
	if (shell > 0)
		my_syscall2(__NR_kill, shell, 1 /* SIGHUP */);
	my_syscall2(__NR_kill, -1, 18 /* SIGCONT */);
	if (!wait_for_last(now + 3000, wishes)) {
		my_syscall2(__NR_kill, -1, 1 /* SIGHUP */);
		if (!wait_for_last(now + 6000, wishes)) {
			my_syscall2(__NR_kill, -1, 9 /* SIGKILL */);
			wait_for_last(now + 8000, -1);
		}
	}
	my_syscall0(__NR_sync);
	drain();
	power_off(0);
}
