// SPDX-License-Identifier: Apache-2.0
/*
 * vsock: standard input and output over a vsock connection, each direction until its end.
 *
 *   vsock connect CID PORT    (CID 2: the host)
 *   vsock listen PORT         takes one connection
 *
 * The end of input closes the sending half only; the program ends when the other side has closed its half too. Status 0, or 1
 * with a sentence, or 2 for wrong usage.
 */
#include "nolibc.h"

#define AF_VSOCK 40
#define SOCK_STREAM_CLOEXEC (1 | 02000000)
#define ANY_CID 0xffffffffu

struct address {
	unsigned short family, reserved;
	unsigned int port, cid;
	unsigned char zero[4];
};

struct poll_request {
	int fd;
	short events, revents;
};

static void __attribute__((noreturn)) fail(const char *what, long error)
{
	char number[24];

	fputs("vsock: ", stderr);
	fputs(what, stderr);
	if (error) {
		fputs(": error ", stderr);
		ltoa_r(-error, number);
		fputs(number, stderr);
	}
	fputs("\n", stderr);
	exit(1);
}

static void __attribute__((noreturn)) usage(void)
{
	fputs("usage: vsock connect CID PORT\n       vsock listen PORT\n", stderr);
	exit(2);
}

static unsigned int number(const char *text)
{
	unsigned long value = 0;

	if (!*text)
		usage();
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			usage();
		value = value * 10 + (*text - '0');
		if (value > 0xffffffff)
			usage();
	}
	return value;
}

static int new_socket(void)
{
	long fd = my_syscall3(__NR_socket, AF_VSOCK, SOCK_STREAM_CLOEXEC, 0);

	if (fd < 0)
		fail("no vsock device", fd);
	return fd;
}

static int connect_to(unsigned int cid, unsigned int port)
{
	struct address address = { AF_VSOCK, 0, port, cid, { 0 } };
	int fd = new_socket();
	long result = my_syscall3(__NR_connect, fd, &address, sizeof(address));

	if (result < 0)
		fail("cannot connect", result);
	return fd;
}

static int accept_on(unsigned int port)
{
	struct address address = { AF_VSOCK, 0, port, ANY_CID, { 0 } };
	int fd = new_socket();
	long result = my_syscall3(__NR_bind, fd, &address, sizeof(address));

	if (result < 0)
		fail("cannot bind", result);
	result = my_syscall2(__NR_listen, fd, 1);
	if (result < 0)
		fail("cannot listen", result);
	result = my_syscall4(__NR_accept4, fd, 0, 0, 02000000 /* SOCK_CLOEXEC */);
	if (result < 0)
		fail("cannot accept", result);
	my_syscall1(__NR_close, fd);
	return result;
}

/* Writes all of it. Returns 0, or the error. */
static long write_all(int fd, const char *data, long size)
{
	while (size) {
		long count = my_syscall3(__NR_write, fd, data, size);

		if (count == -EINTR)
			continue;
		if (count < 0)
			return count;
		data += count;
		size -= count;
	}
	return 0;
}

/* Moves what is there. Returns 1, or 0 at the end. */
static int move(int from, int to, const char *what)
{
	static char buffer[65536];
	long count = my_syscall3(__NR_read, from, buffer, sizeof(buffer)), error;

	if (count == -EINTR)
		return 1;
	if (count < 0)
		fail(what, count);
	error = write_all(to, buffer, count);
	if (error)
		fail(what, error);
	return count > 0;
}

/* Either direction in a process of its own: neither ever waits for the other. */
static void carry(int fd)
{
	int child = fork(), status;

	if (child < 0)
		fail("cannot fork", 0);
	if (!child) {
		while (move(0, fd, "sending"))
			;
		my_syscall2(__NR_shutdown, fd, 1 /* SHUT_WR */);
		exit(0);
	}
	while (move(fd, 1, "receiving"))
		;
	if (waitpid(child, &status, 0) == child && status)
		exit(1);
}

int main(int argc, char **argv)
{
	/* A closed connection is an error of write, not the end. */
	struct {
		void (*handler)(int);
		unsigned long flags;
		void *restorer;
		unsigned long mask;
	} ignore = { (void (*)(int))1, 0, 0, 0 };

	my_syscall4(__NR_rt_sigaction, 13 /* SIGPIPE */, &ignore, 0, sizeof(ignore.mask));
	if (argc == 4 && !strcmp(argv[1], "connect"))
		carry(connect_to(number(argv[2]), number(argv[3])));
	else if (argc == 3 && !strcmp(argv[1], "listen"))
		carry(accept_on(number(argv[2])));
	else
		usage();
	return 0;
}
