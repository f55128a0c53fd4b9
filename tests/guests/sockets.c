/*
 * Both sides of vsock connections, for a guest to have.
 *
 *   sockets connect PORT COUNT LENGTH   opens COUNT connections to the host, all before it uses the first; sends LENGTH bytes
 *                                       over each, ends its half, and compares what comes back until the host ends its own.
 *                                       Says "good COUNT", or "refused ERROR"
 *   sockets serve PORT                  gives back what comes over any connection to PORT, ends what the other side ends, and
 *                                       says "reset" of one that broke; a connection to PORT + 1 ends it all.
 *                                       A connection to PORT + 2 is told the guest's CID
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { MOST = 1000, PIECE = 65536 };

static void fail(const char *what)
{
	fprintf(stderr, "sockets: %s: %s\n", what, strerror(errno));
	exit(1);
}

static struct sockaddr_vm address(unsigned int cid, unsigned int port)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = cid };

	return address;
}

static int new_socket(void)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		fail("socket");
	return fd;
}

static int listen_on(unsigned int port)
{
	struct sockaddr_vm any = address(VMADDR_CID_ANY, port);
	int fd = new_socket();

	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, MOST))
		fail("listen");
	return fd;
}

static void write_all(int fd, const char *bytes, long length)
{
	while (length > 0) {
		long count = write(fd, bytes, length);

		if (count < 0)
			fail("write");
		bytes += count;
		length -= count;
	}
}

/* Byte `at` of what connection `number` sends. */
static char noise(unsigned long number, unsigned long at)
{
	return (number * 31 + at + (at >> 8) * 7 + (at >> 16)) & 0xff;
}

static void send_noise(int fd, unsigned long number, long length)
{
	static char bytes[PIECE];

	for (long at = 0; at < length; at += PIECE) {
		long part = length - at < PIECE ? length - at : PIECE;

		for (long i = 0; i < part; i++)
			bytes[i] = noise(number, at + i);
		write_all(fd, bytes, part);
	}
	if (shutdown(fd, SHUT_WR))
		fail("shutdown");
}

static void expect_noise(int fd, unsigned long number, long length)
{
	static char bytes[PIECE];
	long at = 0, count;

	while ((count = read(fd, bytes, sizeof(bytes))) > 0) {
		for (long i = 0; i < count; i++)
			if (bytes[i] != noise(number, at + i)) {
				printf("byte %ld of connection %lu is wrong\n", at + i, number);
				exit(1);
			}
		at += count;
	}
	if (count < 0)
		fail("read");
	if (at != length) {
		printf("%ld of %ld bytes came back over connection %lu\n", at, length, number);
		exit(1);
	}
}

static void connect_all(unsigned int port, int count, long length)
{
	static int sockets[MOST];
	struct sockaddr_vm host = address(VMADDR_CID_HOST, port);

	for (int i = 0; i < count; i++) {
		sockets[i] = new_socket();
		if (connect(sockets[i], (struct sockaddr *)&host, sizeof(host))) {
			printf("refused %d\n", errno);
			exit(0);
		}
	}
	for (int i = 0; i < count; i++) {
		/* One process writes while the other reads: neither waits for the other. A short text needs no second one. */
		int child = length > PIECE ? fork() : 0, status = 0;

		if (child < 0)
			fail("fork");
		if (child == 0)
			send_noise(sockets[i], i, length);
		if (child == 0 && length > PIECE)
			exit(0);
		expect_noise(sockets[i], i, length);
		if (child > 0 && (waitpid(child, &status, 0) != child || status))
			exit(1);
	}
	printf("good %d\n", count);
}

/* Gives back what is there. Returns 0 at the end. */
static int give_back(int fd)
{
	static char bytes[PIECE];
	long count = read(fd, bytes, sizeof(bytes));

	if (count > 0) {
		write_all(fd, bytes, count);
		return 1;
	}
	if (count < 0)
		printf("reset %d\n", errno);
	return 0;
}

static void tell_cid(int fd)
{
	int device = open("/dev/vsock", O_RDONLY);
	unsigned int cid;
	char text[16];

	if (device < 0 || ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid))
		fail("/dev/vsock");
	close(device);
	write_all(fd, text, sprintf(text, "%u\n", cid));
	close(fd);
}

static void serve(unsigned int port)
{
	static struct pollfd polled[MOST + 3];
	int count = 3;

	for (int i = 0; i < 3; i++)
		polled[i] = (struct pollfd){ listen_on(port + i), POLLIN, 0 };
	puts("serving");
	for (;;) {
		if (poll(polled, count, -1) < 0)
			fail("poll");
		for (int i = 3; i < count; i++)
			if (polled[i].revents && !give_back(polled[i].fd)) {
				close(polled[i].fd);
				polled[i--] = polled[--count];
			}
		if (polled[1].revents)
			exit(0);
		if (polled[2].revents)
			tell_cid(accept(polled[2].fd, 0, 0));
		if (polled[0].revents && count < MOST + 3)
			polled[count++] = (struct pollfd){ accept(polled[0].fd, 0, 0), POLLIN, 0 };
	}
}

int main(int argc, char **argv)
{
	struct rlimit many = { MOST + 20, MOST + 20 };

	setvbuf(stdout, 0, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	setrlimit(RLIMIT_NOFILE, &many);
	if (argc == 5 && !strcmp(argv[1], "connect"))
		connect_all(atoi(argv[2]), atoi(argv[3]), atol(argv[4]));
	else if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(atoi(argv[2]));
	else
		return 2;
	return 0;
}
