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

static void echo(void)
{
	for (;;) {
		u8 byte;

		while (!(in8(COM1 + 5) & 1))
			;
		byte = in8(COM1);
		if (byte == 4 /* end of transmission */)
			end(0);
		out8(COM1, byte);
	}
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
