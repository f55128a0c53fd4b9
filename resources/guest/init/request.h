/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host asks for, in words: behind ` -- ` on the kernel's command line, or in one line on the first serial line.
 *
 * No system call and no libc beyond string functions, so that a test on the host can include it (tests/guests/words.c).
 */

struct request {
	int wait;			/* the other words come by the serial line */
	int piped;			/* standard streams are pipes of the host, not a terminal */
	char *command;			/* percent-encoded words, or none: a login shell */
	unsigned short rows, columns;	/* of the terminal; 0: unknown */
	char *term, *hostname;
	char *machine_id;		/* 32 hexadecimal digits */
	unsigned char entropy[64];
	unsigned int entropy_size;
	int has_time;
	long seconds, nanoseconds;
};

static int hexadecimal(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* What follows `prefix` in `word`, or none if it begins otherwise. */
static char *after(char *word, const char *prefix)
{
	while (*prefix)
		if (*word++ != *prefix++)
			return 0;
	return word;
}

/* Reads a number and moves on behind it. Returns -1 if there is none, or a larger one than `most`. */
static long number(char **text, long most)
{
	long value = -1;

	for (; **text >= '0' && **text <= '9'; ++*text) {
		value = (value < 0 ? 0 : value * 10) + (**text - '0');
		if (value > most)
			return -1;
	}
	return value;
}

static void read_size(struct request *request, char *text)
{
	long rows = number(&text, 0xffff), columns;

	if (rows < 0 || *text++ != 'x')
		return;
	columns = number(&text, 0xffff);
	if (columns < 0 || *text)
		return;
	request->rows = rows;
	request->columns = columns;
}

static void read_time(struct request *request, char *text)
{
	long seconds = number(&text, 1l << 40), nanoseconds;

	if (seconds < 0 || *text++ != '.')
		return;
	nanoseconds = number(&text, 999999999);
	if (nanoseconds < 0 || *text)
		return;
	request->has_time = 1;
	request->seconds = seconds;
	request->nanoseconds = nanoseconds;
}

static void read_entropy(struct request *request, const char *text)
{
	unsigned int size = 0;
	int high, low;

	while (size < sizeof(request->entropy) && (high = hexadecimal(text[0])) >= 0 &&
	       (low = hexadecimal(text[1])) >= 0) {
		request->entropy[size++] = high << 4 | low;
		text += 2;
	}
	request->entropy_size = size;
}

static void read_machine_id(struct request *request, char *text)
{
	int i;

	for (i = 0; i < 32; i++)
		if (hexadecimal(text[i]) < 0)
			return;
	if (!text[32])
		request->machine_id = text;
}

/* Takes one word, which must stay where it is. What it does not know, or cannot make sense of, is as if it were not there. */
static void read_word(struct request *request, char *word)
{
	char *value;

	if ((value = after(word, "run="))) {
		request->command = value;
	} else if ((value = after(word, "tty="))) {
		read_size(request, value);
	} else if ((value = after(word, "term="))) {
		if (*value)
			request->term = value;
	} else if ((value = after(word, "entropy="))) {
		read_entropy(request, value);
	} else if ((value = after(word, "time="))) {
		read_time(request, value);
	} else if ((value = after(word, "machine-id="))) {
		read_machine_id(request, value);
	} else if ((value = after(word, "hostname="))) {
		if (*value)
			request->hostname = value;
	} else if ((value = after(word, "piped")) && !*value) {
		request->piped = 1;
	} else if ((value = after(word, "wait")) && !*value) {
		request->wait = 1;
	}
}

/* Takes the words of a line, which ends with a NUL byte and must stay where it is. */
static void read_words(struct request *request, char *line)
{
	while (*line) {
		char *word = line;

		while (*line && *line != ' ')
			line++;
		if (*line)
			*line++ = 0;
		read_word(request, word);
	}
}

/*
 * Decodes the percent-encoded text in place and splits it at its NUL bytes into `words`, `most` with the closing NULL.
 * Returns how many there are; what is too much is left out.
 */
static int split_command(char *text, char **words, int most)
{
	char *out = text, *word = text;
	int n = 0;

	for (;;) {
		char c = *text++;
		int end = !c;

		if (c == '%' && hexadecimal(text[0]) >= 0 && hexadecimal(text[1]) >= 0) {
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
	return n;
}

/*
 * The line by which the words come, and what came with it: input of the command, for whoever reads the serial line next.
 */
#define LINE_MOST 65536

static struct {
	char text[LINE_MOST + 1];
	unsigned int have;	/* bytes read */
	unsigned int searched;	/* so many of them hold no end of the line */
	unsigned int left;	/* where what is behind the line begins */
} incoming;

/* Looks at `count` more bytes behind those that are there. Returns whether the line is complete; it is NUL-terminated then. */
static int line_complete(unsigned int count)
{
	incoming.have += count;
	for (; incoming.searched < incoming.have; incoming.searched++) {
		if (incoming.text[incoming.searched] == '\n') {
			incoming.text[incoming.searched] = 0;
			incoming.left = incoming.searched + 1;
			return 1;
		}
	}
	return 0;
}
