// The parser of the shipped guest's init, for the host: reads what a serial line would bring, in pieces of 7 bytes, and says
// what it made of it, one thing a line. Bytes behind the line come last.
#include <stdio.h>
#include <string.h>

#include "../../resources/guest/init/request.h"

int main(void)
{
	static char *words[LINE_MOST / 3];
	static struct request request;
	int complete = 0, count;

	while (!complete && incoming.have < LINE_MOST) {
		size_t room = LINE_MOST - incoming.have;
		size_t got = fread(incoming.text + incoming.have, 1, room < 7 ? room : 7, stdin);

		if (!got)
			break;
		complete = line_complete(got);
	}
	if (!complete) {
		fputs("no line", stdout);
		return 0;
	}
	read_words(&request, incoming.text);
	if (request.wait)
		puts("wait");
	if (request.piped)
		puts("piped");
	if (request.rows || request.columns)
		printf("%d rows %d columns\n", request.rows, request.columns);
	if (request.term)
		printf("term %s\n", request.term);
	if (request.hostname)
		printf("hostname %s\n", request.hostname);
	if (request.machine_id)
		printf("machine-id %s\n", request.machine_id);
	if (request.has_time)
		printf("time %ld %ld\n", request.seconds, request.nanoseconds);
	if (request.entropy_size) {
		printf("entropy");
		for (unsigned int i = 0; i < request.entropy_size; i++)
			printf(" %u", request.entropy[i]);
		puts("");
	}
	if (request.command) {
		count = split_command(request.command, words, LINE_MOST / 3);
		for (int i = 0; i < count; i++)
			printf("word %s\n", words[i]);
	}
	printf("left %.*s", (int)(incoming.have - incoming.left), incoming.text + incoming.left);
	while ((count = getchar()) != EOF)
		putchar(count);
	return 0;
}
