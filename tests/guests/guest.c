/*
 * The test guest: does what `do=WORD[:NUMBER]` on its command line says.
 *
 * Nothing here needs more than ring 0 and plain integer instructions, so that it runs the same where KVM interprets.
 */
#include "guest.h"

extern volatile char via; /* '6' or 'P': the entry taken */

void print(const char *text)
{
	while (*text)
		out8(COM1, *text++);
}

void __attribute__((noreturn)) end(u8 status)
{
	out8(EXIT_PORT, status);
	for (;;)
		__asm__ volatile("hlt");
}

static int matches(const char *text, const char *word)
{
	while (*word)
		if (*text++ != *word++)
			return 0;
	return *text == 0 || *text == ' ' || *text == ':';
}

/* What follows `do=`, which begins a word. */
static const char *find_task(const char *line)
{
	char before = ' ';

	for (; *line; before = *line++)
		if (before == ' ' && line[0] == 'd' && line[1] == 'o' && line[2] == '=')
			return line + 3;
	return "";
}

static u64 number_after(const char *word)
{
	u64 n = 0;

	while (*word && *word != ' ' && *word != ':')
		word++;
	if (*word == ':')
		while (*++word >= '0' && *word <= '9')
			n = n * 10 + (*word - '0');
	return n;
}

static u8 receive(void)
{
	while (!(in8(COM1 + 5) & 1))
		;
	return in8(COM1);
}

static void echo(void)
{
	for (;;) {
		u8 byte = receive();

		if (byte == 4 /* end of transmission */)
			end(0);
		out8(COM1, byte);
	}
}

/* RAM that nothing else uses, and of which `rounds` uses one word in each page. */
enum { STAMPS = 8 << 20, STAMPED_PAGES = 2048 };

static u64 stamp_at(u64 page)
{
	return STAMPS + page * 4096 + page * 8 % 4096;
}

static void stamp(u8 with)
{
	u64 page;

	for (page = 0; page < STAMPED_PAGES; page++)
		write_64(stamp_at(page), page << 8 | with);
}

static int stamped(u8 with)
{
	u64 page;

	for (page = 0; page < STAMPED_PAGES; page++)
		if (read_64(stamp_at(page)) != (page << 8 | with))
			return 0;
	return 1;
}

/*
 * Stamps its memory, says that it is ready, and waits for bytes. Each must find the memory as the one before left it, which it
 * stamps anew; then it is echoed, or, if it is an s, the guest says again that it is ready. An end of transmission ends the
 * machine: the status is how many bytes came.
 */
static void rounds(void)
{
	u8 byte = 0, count = 0;

	for (;;) {
		u8 before = byte;

		stamp(byte);
		if (byte == 0 || byte == 's')
			out8(READY_PORT, 1);
		else
			out8(COM1, byte);
		byte = receive();
		count++;
		if (!stamped(before)) {
			print("the memory has changed\n");
			end(98);
		}
		if (byte == 4 /* end of transmission */)
			end(count);
	}
}

/* Writes to each page of so many MiB, says that it is ready, and then writes bytes without end. */
static void tick(u64 mib)
{
	u64 page;

	for (page = 0; page < mib * 256; page++)
		write_64(STAMPS + page * 4096, page + 1);
	out8(READY_PORT, 1);
	for (;;)
		out8(COM1, '.');
}

/* Counts what it is sent, aloud: whoever goes on from a snapshot goes on counting. */
static void tally(void)
{
	u64 count = 0;

	for (;;) {
		char digits[22];
		int at = sizeof(digits) - 1;
		u64 rest;

		while (!(in8(COM1 + 5) & 1))
			;
		if (in8(COM1) == 4 /* end of transmission */)
			end(0);
		digits[at] = 0;
		digits[--at] = '\n';
		for (rest = ++count; rest || digits[at] == '\n'; rest /= 10)
			digits[--at] = '0' + rest % 10;
		print(digits + at);
	}
}

/* Shuts down when the power button is pressed. */
static void obey(void)
{
	while (!(in8(ACPI_EVENTS) & 1))
		;
	print("bye\n");
	out8(ACPI_SLEEP, 0x20 | 5 << 2);
}

static void triple_fault(void)
{
	static const struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) none = { 0, 0 };

	__asm__ volatile("lidt %0; ud2" : : "m"(none));
}

void guest_main(const char *line)
{
	const char *task = find_task(line);

	if (matches(task, "exit")) {
		end(number_after(task));
	} else if (matches(task, "linger")) {
		/* As end() does, and then what no host should ever see. */
		out8(EXIT_PORT, number_after(task));
		print("still running");
	} else if (matches(task, "entry")) {
		static char text[] = "entry ?\n";
		text[6] = via;
		print(text);
		end(0);
	} else if (matches(task, "cmdline")) {
		print(line);
		end(0);
	} else if (matches(task, "halt")) {
		print("halted\n");
		for (;;)
			__asm__ volatile("cli; hlt");
	} else if (matches(task, "spin")) {
		print("spinning\n");
		for (;;)
			;
	} else if (matches(task, "triple")) {
		triple_fault();
	} else if (matches(task, "reset")) {
		out8(I8042_COMMAND, 0xfe);
	} else if (matches(task, "acpi-reset")) {
		out8(ACPI_RESET, 1);
	} else if (matches(task, "shutdown")) {
		out8(ACPI_SLEEP, 0x20 | 5 << 2);
	} else if (matches(task, "panic")) {
		out8(PVPANIC, 1);
	} else if (matches(task, "echo")) {
		print("ready\n");
		echo();
	} else if (matches(task, "rounds")) {
		rounds();
	} else if (matches(task, "tick")) {
		tick(number_after(task));
	} else if (matches(task, "tally")) {
		print("ready\n");
		tally();
	} else if (matches(task, "obey")) {
		print("waiting\n");
		obey();
	} else if (matches(task, "hostile")) {
		be_hostile(number_after(task));
	} else if (matches(task, "garbage")) {
		run_garbage(number_after(task));
	} else {
		print("the test guest knows no such task: ");
		print(line);
		print("\n");
		end(99);
	}
	/* The host should have ended the machine. */
	for (;;)
		__asm__ volatile("hlt");
}
