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

static const char *environment[] = {
	"TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
	"USER=root", "SHELL=/bin/sh", 0,
};

/* What the host asked for, by the words behind ` -- ` on the kernel's command line. */
static struct {
	int piped;	   /* standard streams are pipes of the host, not a terminal */
	char *command;	   /* percent-encoded words, or none: a login shell */
	unsigned short rows, columns;
} request;

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
	/* Not part of the overlay: on it containers can lay overlays of their own. */
	system_mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
	mkdir("/dev/pts", 0755);
	system_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=666");
	mkdir("/dev/shm", 0777);
	system_mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, 0);
}

/*
 * Small reads from the root disk. A page that was read ahead in vain costs an interpreted kernel a millisecond; a request
 * to a disk that lies in the host's memory costs little anywhere.
 */
static void read_little_ahead(void)
{
	int disk = open("/dev/vda", O_RDONLY | O_CLOEXEC);

	if (disk >= 0) {
		my_syscall3(__NR_ioctl, disk, 0x1262 /* BLKRASET */, 32 /* sectors */);
		close(disk);
	}
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

#define CRTSCTS 020000000000
#define TIOCM_OUT1 0x2000

/* 8-bit clean, no echo, no translation. */
static void make_raw(int fd)
{
	struct kernel_termios t;

	if (ioctl(fd, TCGETS, &t))
		return;
	t.iflag = 0;
	t.oflag = 0;
	t.lflag = 0;
	t.cflag |= CRTSCTS;
	t.cc[6 /* VMIN */] = 1;
	t.cc[5 /* VTIME */] = 0;
	ioctl(fd, TCSETS, &t);
}

/* The host holds its input back while the line's buffer is full. */
static void use_flow_control(int fd)
{
	struct kernel_termios t;

	if (ioctl(fd, TCGETS, &t))
		return;
	t.cflag |= CRTSCTS;
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

/* Tries the words of PATH in turn, which name three folders of this image. Returns only if the command could not be started: 127 or 126, as shells do. */
static int execute(char **words)
{
	static const char *const folders[] = { "/usr/local/sbin/", "/usr/local/bin/", "/usr/bin/" };
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

static void __attribute__((noreturn)) execute_command(void)
{
	static char *words[1024];
	int status;

	split_command(request.command, words, sizeof(words) / sizeof(*words));
	status = execute(words);
	say(2, "berth-init: ");
	say(2, words[0]);
	say(2, status == 127 ? ": not found\n" : ": cannot be executed\n");
	exit(status);
}

/* A command, or a login shell, on the first serial line as its terminal. */
static void __attribute__((noreturn)) run_on_terminal(void)
{
	static char *shell[] = { "-sh", 0 };
	unsigned short size[4] = { request.rows, request.columns, 0, 0 };
	int fd;

	setsid();
	fd = open("/dev/ttyS0", O_RDWR);
	ioctl(fd, TIOCSCTTY, 0);
	use_flow_control(fd);
	if (request.rows && request.columns)
		ioctl(fd, TIOCSWINSZ, size);
	dup2(fd, 0);
	dup2(fd, 1);
	dup2(fd, 2);
	if (request.command)
		execute_command();
	execve("/bin/sh", shell, (char **)environment);
	say(2, "berth-init: /bin/sh cannot be executed\n");
	exit(127);
}

/*
 * A command with pipes: input arrives on the first serial line in frames (a length byte and as many bytes; none = the
 * end) and goes to the command through a pipe; output leaves by the first line, errors by the second.
 */
static int line = -1, input = -1;

static void __attribute__((noreturn)) run_piped(int reader)
{
	int err = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (err >= 0)
		make_raw(err);
	else
		err = line;
	dup2(reader, 0);
	dup2(line, 1);
	dup2(err, 2);
	setsid();
	execute_command();
}

struct poll_request {
	int fd;
	short events, revents;
};

#define SIGCHLD_MASK (1ul << (17 - 1))

/* Waits for `child`, carrying its input meanwhile. SIGCHLD is blocked but for the wait itself, so none is missed. */
static int carry_input(int child)
{
	static unsigned char buffer[256];
	static const unsigned long none;
	unsigned char length = 0, have = 0, sent = 0;
	int status, ended;

	for (;;) {
		struct poll_request poll = { -1, 0, 0 };

		while ((ended = waitpid(-1, &status, WNOHANG)) > 0)
			if (ended == child)
				return status;
		if (input >= 0) {
			int full = length && have == length;

			poll.fd = full ? input : line;
			poll.events = full ? 4 /* POLLOUT */ : 1 /* POLLIN */;
		}
		if (my_syscall5(__NR_ppoll, &poll, 1, 0, &none, sizeof(none)) <= 0)
			continue;
		if (poll.fd == input) {
			int count = write(input, buffer + sent, length - sent);

			if (count > 0)
				sent += count;
			else if (errno != EAGAIN && errno != EINTR)
				close(input), input = -1; /* nobody reads it any more */
			if (sent == length)
				length = have = sent = 0;
		} else if (!length) {
			if (read(line, &length, 1) == 1 && !length)
				close(input), input = -1;
		} else {
			int count = read(line, buffer + have, length - have);

			if (count > 0)
				have += count;
		}
	}
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

static void handle(int signal, void (*handler)(int))
{
	struct kernel_sigaction action = { handler, 0x04000000 /* SA_RESTORER */, restorer, 0 };

	my_syscall4(__NR_rt_sigaction, signal, &action, 0, sizeof(action.mask));
}

static int start_piped(void)
{
	unsigned long mask = SIGCHLD_MASK;
	int ends[2], child, ready = TIOCM_OUT1;

	line = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
	make_raw(line);
	/* From here on input is not echoed and not edited: the host may send it. */
	ioctl(line, TIOCMBIS, &ready);
	if (my_syscall2(__NR_pipe2, ends, O_CLOEXEC))
		fail("pipe");
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child)
		run_piped(ends[0]);
	handle(13 /* SIGPIPE */, (void (*)(int))1 /* SIG_IGN */);
	close(ends[0]);
	input = ends[1];
	my_syscall3(__NR_fcntl, input, 4 /* F_SETFL */, O_NONBLOCK);
	my_syscall4(__NR_rt_sigprocmask, 0 /* SIG_BLOCK */, &mask, 0, sizeof(mask));
	return child;
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

/* SIGCHLD only has to interrupt a wait. */
static void on_child(int signal)
{
	(void)signal;
}

static unsigned short number(const char **text)
{
	unsigned short value = 0;

	while (**text >= '0' && **text <= '9')
		value = value * 10 + *(*text)++ - '0';
	return value;
}

static const char *after(const char *word, const char *prefix)
{
	size_t length = strlen(prefix);

	return strncmp(word, prefix, length) ? 0 : word + length;
}

static void read_request(char **argv)
{
	static char term[72];
	const char *value;

	while (*++argv) {
		if (!strcmp(*argv, "piped")) {
			request.piped = 1;
		} else if (after(*argv, "run=")) {
			request.command = *argv + 4;
		} else if ((value = after(*argv, "tty="))) {
			request.rows = number(&value);
			value += *value == 'x';
			request.columns = number(&value);
		} else if (after(*argv, "term=") && strlen(*argv) < 64) {
			strlcpy(term, "TERM=", sizeof(term));
			strlcat(term, *argv + 5, sizeof(term));
			environment[0] = term;
		}
	}
}

int main(int argc, char **argv)
{
	int status = 0, child, ended;

	(void)argc;
	read_request(argv);
	make_root();
	read_little_ahead();
	loopback_up();
	handle(10 /* SIGUSR1: halt */, on_signal);
	handle(12 /* SIGUSR2: poweroff */, on_signal);
	handle(15 /* SIGTERM: reboot */, on_signal);
	if (request.piped && request.command) {
		handle(17 /* SIGCHLD */, on_child);
		child = start_piped();
		status = carry_input(child);
	} else {
		child = fork();
		if (child < 0)
			fail("fork");
		if (!child)
			run_on_terminal();
		do {
			ended = waitpid(-1, &status, 0);
		} while (ended != child);
	}
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + (status & 0x7f);
	my_syscall0(__NR_sync);
	drain("/dev/ttyS0");
	drain("/dev/ttyS1");
	power_off(status);
}
