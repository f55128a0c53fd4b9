/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The serial lines and the pipe that are a command's standard streams.
 *
 * A command with pipes: input arrives on the first serial line in frames (a length byte and as many bytes; none = the
 * end) and goes to the command through a pipe; output leaves by the first line, errors by the second.
 */

struct kernel_termios {
	unsigned int iflag, oflag, cflag, lflag;
	unsigned char line, cc[19];
};

#define CRTSCTS 020000000000
#define TIOCM_OUT1 0x2000

/* Both serial lines, and the ends of the pipe; -1 where there is none. */
static int line = -1, errors = -1, input = -1, input_reader = -1;
/* How the first line was before it was made raw. */
static struct kernel_termios as_terminal;

/* 8-bit clean, no echo, no translation; the host holds its input back while the line's buffer is full. */
static void make_raw(int fd, struct kernel_termios t)
{
	t.iflag = 0;
	t.oflag = 0;
	t.lflag = 0;
	t.cflag |= CRTSCTS;
	t.cc[6 /* VMIN */] = 1;
	t.cc[5 /* VTIME */] = 0;
	ioctl(fd, TCSETS, &t);
}

static void prepare_streams(void)
{
	int ends[2], ready = TIOCM_OUT1;
	struct kernel_termios t;

	line = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (!ioctl(line, TCGETS, &as_terminal))
		make_raw(line, as_terminal);
	/* From here on input is not echoed and not edited: the host may send it. */
	ioctl(line, TIOCMBIS, &ready);
	errors = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (errors >= 0 && !ioctl(errors, TCGETS, &t))
		make_raw(errors, t);
	if (my_syscall2(__NR_pipe2, ends, O_CLOEXEC))
		fail("pipe");
	input_reader = ends[0];
	input = ends[1];
}

/*
 * Makes the first line a terminal again. What was typed behind the line with the words goes back to where it came from; what
 * is typed meanwhile must not come before it.
 */
static void become_terminal(int fd, const unsigned short *size)
{
	struct kernel_termios t;
	int typed = incoming.have - incoming.left, rts = 0x4 /* TIOCM_RTS */;

	if (line < 0)
		my_syscall3(__NR_ioctl, fd, TCGETS, &t);
	else
		t = as_terminal;
	t.cflag |= CRTSCTS;
	if (typed) {
		struct poll_request poll = { fd, 1 /* POLLIN */, 0 };
		const long moment[2] = { 0, 20000000 };
		long count;

		my_syscall3(__NR_ioctl, fd, TIOCMBIC, &rts);
		while (incoming.have < LINE_MOST && wait_for(&poll, moment)) {
			count = my_syscall3(__NR_read, fd, incoming.text + incoming.have,
					    LINE_MOST - incoming.have);
			if (count <= 0)
				break;
			incoming.have += count;
		}
	}
	my_syscall3(__NR_ioctl, fd, TCSETS, &t);
	if (size[0] && size[1])
		my_syscall3(__NR_ioctl, fd, TIOCSWINSZ, size);
	for (; incoming.left < incoming.have; incoming.left++)
		my_syscall3(__NR_ioctl, fd, 0x5412 /* TIOCSTI */, &incoming.text[incoming.left]);
	if (typed)
		my_syscall3(__NR_ioctl, fd, TIOCMBIS, &rts);
}

static void close_input(void)
{
	if (input >= 0)
		close(input);
	input = -1;
}

/* Lets a serial line send what it holds. */
static void drain_line(int fd, const char *name)
{
	int opened = fd < 0;

	if (opened)
		fd = open(name, O_RDWR | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		return;
	my_syscall3(__NR_ioctl, fd, TCSBRK, 1);
	if (opened)
		close(fd);
}

static void drain(void)
{
	drain_line(line, "/dev/ttyS0");
	drain_line(errors, "/dev/ttyS1");
}

/* As read() from the first line, but what came behind the line with the words comes first. */
static long read_line(void *buffer, unsigned long size)
{
	unsigned long have = incoming.have - incoming.left;

	if (!have)
		return my_syscall3(__NR_read, line, buffer, size);
	if (size > have)
		size = have;
	memcpy(buffer, incoming.text + incoming.left, size);
	incoming.left += size;
	return size;
}

/* Waits for `child`, which may be a login shell, carrying its input meanwhile. Returns its status. */
static int carry_input(int child, int is_shell)
{
	static unsigned char buffer[256];
	unsigned char length = 0, have = 0, sent = 0;
	long count;
	int status;

	for (;;) {
		struct poll_request poll = { -1, 0, 0 };

		if (end_wanted)
			end_politely(is_shell ? child : 0);
		while ((count = my_syscall4(__NR_wait4, -1, &status, WNOHANG, 0)) > 0)
			if (count == child)
				return status;
		if (input >= 0) {
			int full = length && have == length;

			poll.fd = full ? input : line;
			poll.events = full ? 4 /* POLLOUT */ : 1 /* POLLIN */;
		}
		if ((poll.fd < 0 || poll.fd == input || incoming.left == incoming.have) && !wait_for(&poll, 0))
			continue;
		if (poll.fd == input) {
			count = my_syscall3(__NR_write, input, buffer + sent, length - sent);
			if (count > 0)
				sent += count;
			else if (count != -EAGAIN && count != -EINTR)
				close_input(); /* nobody reads it any more */
			if (sent == length)
				length = have = sent = 0;
		} else if (!length) {
			if (read_line(&length, 1) == 1 && !length)
				close_input();
		} else {
			count = read_line(buffer + have, length - have);
			if (count > 0)
				have += count;
		}
	}
}
