// SPDX-License-Identifier: Apache-2.0
/*
 * The init of the guest that ships with Berth: a writable root over the read-only image, then one command or a shell.
 *
 * Where KVM interprets kernel code a system call or a page fault costs milliseconds, so this does with few of both: no
 * libc start-up (the kernel's own nolibc header), no dynamic memory. The README beside the build script has the
 * protocol with the host.
 */
#include "nolibc.h"

#define EXIT_PORT 0xf4

static const char *const environment[] = {
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=linux",
	"USER=root", "SHELL=/bin/sh", 0,
};

static void say(int fd, const char *text)
{
	write(fd, text, strlen(text));
}

/* Ends the VM with `status`; the host sees the byte and closes the machine. */
static void __attribute__((noreturn)) power_off(int status)
{
	unsigned char byte = status;
	int port = open("/dev/port", O_WRONLY);

	if (port >= 0 && lseek(port, EXIT_PORT, SEEK_SET) == EXIT_PORT)
		write(port, &byte, 1);
	/* No exit port there: stop the machine the ordinary way. */
	reboot(LINUX_REBOOT_CMD_POWER_OFF);
	for (;;)
		my_syscall0(__NR_pause);
}

static void __attribute__((noreturn)) fail(const char *what)
{
	int console = open("/dev/console", O_WRONLY);

	say(console, "berth-init: ");
	say(console, what);
	say(console, " failed\n");
	my_syscall3(__NR_ioctl, console, TCSBRK, 1);
	power_off(125);
}

static int system_mount(const char *source, const char *target, const char *type, unsigned long flags,
			const char *options)
{
	return my_syscall5(__NR_mount, source, target, type, flags, options);
}

/* A writable root: the image below, a tmpfs above. */
static void make_root(void)
{
	if (system_mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"))
		fail("mount of a tmpfs on /run");
	mkdir("/run/upper", 0755);
	mkdir("/run/work", 0755);
	mkdir("/run/root", 0755);
	if (system_mount("overlay", "/run/root", "overlay", 0,
			 "lowerdir=/,upperdir=/run/upper,workdir=/run/work"))
		fail("mount of the overlay root");
	if (chdir("/run/root") || system_mount("/run/root", "/", 0, MS_MOVE, 0) || chroot("."))
		fail("change to the overlay root");
	if (system_mount("dev", "/dev", "devtmpfs", MS_NOSUID, 0))
		fail("mount of /dev");
	system_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
	system_mount("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
	system_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
	mkdir("/dev/pts", 0755);
	system_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=666");
	mkdir("/dev/shm", 0777);
	system_mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, 0);
}

struct ifreq_flags {
	char name[16];
	short flags;
	char rest[22];
};

static void loopback_up(void)
{
	struct ifreq_flags request = { .name = "lo", .flags = 1 /* IFF_UP */ };
	int fd = my_syscall3(__NR_socket, 2 /* AF_INET */, 2 /* SOCK_DGRAM */, 0);

	if (fd < 0)
		return;
	ioctl(fd, 0x8914 /* SIOCSIFFLAGS */, &request);
	close(fd);
}

struct kernel_termios {
	unsigned int iflag, oflag, cflag, lflag;
	unsigned char line, cc[19];
};

/* 8-bit clean, no echo, no translation; CLOCAL off, so that a dropped carrier is the end of input. */
static void make_raw(int fd)
{
	struct kernel_termios t;

	if (ioctl(fd, TCGETS, &t))
		return;
	t.iflag = 0;
	t.oflag = 0;
	t.lflag = 0;
	t.cc[6 /* VMIN */] = 1;
	t.cc[5 /* VTIME */] = 0;
	ioctl(fd, TCSETS, &t);
}

static int hexadecimal(char c)
{
	return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

/* Decodes one percent-encoded argument in place and splits it at its NUL bytes into `words`. */
static void split_command(char *text, char **words, int most)
{
	char *out = text, *word = text;
	int n = 0;

	for (;;) {
		char c = *text++;
		int end = !c;

		if (c == '%' && text[0] && text[1]) {
			c = hexadecimal(text[0]) << 4 | hexadecimal(text[1]);
			text += 2;
		}
		*out++ = c;
		if (!c && n < most - 1) {
			words[n++] = word;
			word = out;
		}
		if (end)
			break;
	}
	words[n] = 0;
}

/* Tries the words of PATH in turn. Returns only if the command could not be started: 127 or 126, as shells do. */
static int execute(char **words)
{
	static const char *const folders[] = { "/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/",
					       "/usr/bin/", "/sbin/", "/bin/" };
	static char path[4200];
	int status = 127;
	unsigned int i;

	if (strchr(words[0], '/')) {
		execve(words[0], words, (char **)environment);
		return errno == ENOENT ? 127 : 126;
	}
	if (strlen(words[0]) > 4096)
		return status;
	for (i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
		strlcpy(path, folders[i], sizeof(path));
		strlcat(path, words[0], sizeof(path));
		execve(path, words, (char **)environment);
		if (errno != ENOENT && errno != ENOTDIR)
			status = 126;
	}
	return status;
}

/* The words of the host's command, on raw serial lines: standard input and output on the first, errors on the second. */
static void run_command(char *command)
{
	static char *words[1024];
	int out = open("/dev/ttyS0", O_RDWR | O_NOCTTY), err = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
	int status;

	make_raw(out);
	if (err >= 0)
		make_raw(err);
	else
		err = out;
	split_command(command, words, sizeof(words) / sizeof(*words));
	dup2(out, 0);
	dup2(out, 1);
	dup2(err, 2);
	setsid();
	status = execute(words);
	say(2, "berth-init: ");
	say(2, words[0]);
	say(2, status == 127 ? ": not found\n" : ": cannot be executed\n");
	exit(status);
}

/* A login shell on the first serial line. */
static void run_shell(void)
{
	static char *words[] = { "-sh", 0 };
	int fd;

	setsid();
	fd = open("/dev/ttyS0", O_RDWR);
	ioctl(fd, TIOCSCTTY, 0);
	dup2(fd, 0);
	dup2(fd, 1);
	dup2(fd, 2);
	execve("/bin/sh", words, (char **)environment);
	say(2, "berth-init: /bin/sh cannot be executed\n");
	exit(127);
}

/* Lets both serial lines send what they hold. */
static void drain(const char *line)
{
	int fd = open(line, O_RDWR | O_NOCTTY | O_NONBLOCK);

	if (fd >= 0) {
		my_syscall3(__NR_ioctl, fd, TCSBRK, 1);
		close(fd);
	}
}

/* What busybox's poweroff, halt and reboot send to the first process. */
static void on_signal(int signal)
{
	my_syscall0(__NR_sync);
	if (signal == 15 /* SIGTERM: reboot */) {
		reboot(LINUX_REBOOT_CMD_RESTART);
	}
	power_off(0);
}

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

static void listen_for(int signal)
{
	struct kernel_sigaction action = { on_signal, 0x04000000 /* SA_RESTORER */, restorer, 0 };

	my_syscall4(__NR_rt_sigaction, signal, &action, 0, sizeof(action.mask));
}

int main(int argc, char **argv)
{
	int status = 0, child, ended;

	make_root();
	loopback_up();
	listen_for(10 /* SIGUSR1: halt */);
	listen_for(12 /* SIGUSR2: poweroff */);
	listen_for(15 /* SIGTERM: reboot */);
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child) {
		if (argc > 1)
			run_command(argv[1]);
		else
			run_shell();
	}
	do {
		ended = waitpid(-1, &status, 0);
	} while (ended != child);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + (status & 0x7f);
	my_syscall0(__NR_sync);
	drain("/dev/ttyS0");
	drain("/dev/ttyS1");
	power_off(status);
}
