// SPDX-License-Identifier: Apache-2.0
/*
 * The init of the guest that ships with Berth: a writable root over the read-only image, then one command or a shell.
 *
 * Where KVM interprets kernel code a system call or a page fault costs much, so this does with few of both: no libc start-up
 * (the kernel's own nolibc header), no dynamic memory, and a child that shares this process's memory until it becomes the
 * command. Told to wait, it does all it can before it says "ready". The README beside the build script has the protocol
 * with the host.
 */
#include "nolibc.h"

#define EXIT_PORT 0xf4
#define READY_PORT 0xf5
#define READY 1

static const char *environment[] = {
	"TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
	"USER=root", "SHELL=/bin/sh", 0,
};

static void say(int fd, const char *text)
{
	write(fd, text, strlen(text));
}

/* Where ports can be written; opened at its first use. */
static int ports = -1;

static void write_port(int port, unsigned char byte)
{
	if (ports < 0)
		ports = open("/dev/port", O_WRONLY | O_CLOEXEC);
	my_syscall4(__NR_pwrite64, ports, &byte, 1, port);
}

/* Ends the VM with `status`; the host sees the byte and closes the machine. */
static void __attribute__((noreturn)) power_off(int status)
{
	write_port(EXIT_PORT, status);
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

#include "request.h"
#include "setup.h"
#include "signals.h"
#include "streams.h"
#include "command.h"

static struct request request;

static void set_term(void)
{
	static char term[72];

	if (request.term && strlen(request.term) < 64) {
		strlcpy(term, "TERM=", sizeof(term));
		strlcat(term, request.term, sizeof(term));
		environment[0] = term;
	}
}

/* Reads the line with the words. What comes behind it stays in `incoming`. */
static void wait_for_words(void)
{
	for (;;) {
		long count;

		if (end_wanted)
			end_politely(0);
		if (incoming.have == LINE_MOST)
			fail("reading the words (they are more than 64 KiB)");
		count = my_syscall3(__NR_read, line, incoming.text + incoming.have, LINE_MOST - incoming.have);
		if (count == -EINTR)
			continue;
		if (count <= 0)
			fail("reading the words from the serial line");
		if (line_complete(count))
			break;
	}
	request.wait = 0;
	read_words(&request, incoming.text);
}

int main(int argc, char **argv)
{
	int status, child;

	(void)argc;
	while (*++argv)
		read_word(&request, *argv);
	make_root();
	read_little_ahead();
	loopback_up();
	if (request.wait) {
		prepare_streams();
		child = start_child(&request);
		take_signals();
		warm_up();
		write_port(READY_PORT, READY);
		wait_for_words();
		make_own(&request);
		set_term();
	} else {
		make_own(&request);
		set_term();
		if (is_piped(&request))
			prepare_streams();
		go = 1;
		child = start_child(&request);
		take_signals();
	}
	hold_signals();
	let_go();
	if (!is_piped(&request))
		close_input();
	status = carry_input(child, !request.command);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + (status & 0x7f);
	my_syscall0(__NR_sync);
	drain();
	power_off(status);
}
