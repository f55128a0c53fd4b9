/* Says what every file of a tree is, a line each: the init of images that tests build, and the same program on the host.
 *
 * facts [--plain] [FOLDER]: without a folder it is init; it says what is in / and ends the machine. --plain leaves out what an
 * initramfs does not keep: times, attributes and what the root directory is. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static int plain;

static void hex(const char *bytes, ssize_t count)
{
	for (ssize_t at = 0; at < count; at++)
		printf("%02x", (unsigned char)bytes[at]);
}

/* The names that the kernel lists, in its order: both sides sort by name here. */
static int by_text(const void *one, const void *other)
{
	return strcmp(*(char *const *)one, *(char *const *)other);
}

static void attributes(const char *path)
{
	static char list[65536], value[65536];
	char *names[64];
	int count = 0;
	ssize_t len = llistxattr(path, list, sizeof(list));

	for (char *name = list; name < list + (len > 0 ? len : 0) && count < 64; name += strlen(name) + 1)
		names[count++] = name;
	qsort(names, count, sizeof(*names), by_text);
	for (int at = 0; at < count; at++) {
		printf(" %s=", names[at]);
		hex(value, lgetxattr(path, names[at], value, sizeof(value)));
	}
}

static void contents(const char *path)
{
	static unsigned char buffer[65536];
	unsigned long long sum = 0xcbf29ce484222325;
	int file = open(path, O_RDONLY);
	ssize_t len;

	while ((len = read(file, buffer, sizeof(buffer))) > 0)
		for (ssize_t at = 0; at < len; at++)
			sum = (sum ^ buffer[at]) * 0x100000001b3;
	close(file);
	printf(" sum=%016llx", sum);
}

static int one(const struct dirent *entry)
{
	return strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && strcmp(entry->d_name, "lost+found");
}

static int by_name(const struct dirent **one, const struct dirent **other)
{
	return strcmp((*one)->d_name, (*other)->d_name);
}

static void walk(const char *path, const char *shown)
{
	struct stat data;
	char target[4096];
	int directory;

	if (lstat(path, &data)) {
		printf("%s cannot be looked at\n", shown);
		return;
	}
	directory = S_ISDIR(data.st_mode);
	if (*shown || !plain) {
		printf("fact ");
		hex(shown, strlen(shown));
		printf(" %o %u:%u", data.st_mode, data.st_uid, data.st_gid);
		if (!directory)
			printf(" links=%lu size=%lld", (unsigned long)data.st_nlink, (long long)data.st_size);
		if (S_ISCHR(data.st_mode) || S_ISBLK(data.st_mode))
			printf(" %u:%u", major(data.st_rdev), minor(data.st_rdev));
		if (!plain)
			printf(" %lld.%09ld", (long long)data.st_mtim.tv_sec, data.st_mtim.tv_nsec);
		if (S_ISLNK(data.st_mode)) {
			printf(" to=");
			hex(target, readlink(path, target, sizeof(target)));
		}
		if (S_ISREG(data.st_mode))
			contents(path);
		if (!plain)
			attributes(path);
		printf("\n");
	}
	if (directory) {
		struct dirent **names;
		int count = scandir(path, &names, one, by_name);

		for (int at = 0; at < count; at++) {
			char *below, *name;

			if (asprintf(&below, "%s/%s", path, names[at]->d_name) < 0 ||
			    asprintf(&name, "%s/%s", shown, names[at]->d_name) < 0)
				exit(1);
			walk(below, name);
			free(below);
			free(name);
			free(names[at]);
		}
	}
}

int main(int count, char **words)
{
	plain = count > 1 && !strcmp(words[1], "--plain");
	if (getpid() != 1) {
		walk(words[count - 1], "");
		return 0;
	}
	walk("/.", "");
	printf("facts end\n");
	fflush(stdout);
	/* By the exit port, with status 0; the image has the node. */
	if (pwrite(open("/dev/port", O_WRONLY), "", 1, 0xf4) != 1)
		perror("/dev/port");
	reboot(RB_AUTOBOOT);
	return 1;
}
