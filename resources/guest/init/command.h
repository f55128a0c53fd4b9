/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The child that becomes the command. It shares this process's memory until then: nothing is copied and nothing is faulted
 * in anew. So it may not touch what the parent uses meanwhile, errno included.
 */

#define CLONE_VM 0x100
#define CLONE_VFORK 0x4000
#define ENOENT_OR_NOT_A_FOLDER(error) ((error) == -ENOENT || (error) == -20 /* ENOTDIR */)

/* Most words of a command: as many as fit in the line. */
#define WORDS_MOST (LINE_MOST / 3)

static const struct request *asked;
/* The child may become what `asked` says. */
static int go;

static int is_piped(const struct request *request)
{
	return request->piped && request->command;
}

static long execute_file(const char *path, char **words)
{
	return my_syscall3(__NR_execve, path, words, environment);
}

/*
 * Tries the words of PATH in turn, which name three folders of this image. Returns only if the command could not be
 * started: 127 or 126, as shells do.
 */
static int execute(char **words)
{
	static const char *const folders[] = { "/usr/local/sbin/", "/usr/local/bin/", "/usr/bin/" };
	static char path[4200];
	int status = 127;
	unsigned int i;

	if (strchr(words[0], '/'))
		return execute_file(words[0], words) == -ENOENT ? 127 : 126;
	if (strlen(words[0]) > 4096)
		return status;
	for (i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
		strlcpy(path, folders[i], sizeof(path));
		strlcat(path, words[0], sizeof(path));
		if (!ENOENT_OR_NOT_A_FOLDER(execute_file(path, words)))
			status = 126;
	}
	return status;
}

static void __attribute__((noreturn)) execute_command(void)
{
	static char *words[WORDS_MOST];
	int status;

	split_command(asked->command, words, WORDS_MOST);
	status = execute(words);
	say(2, "berth-init: ");
	say(2, words[0]);
	say(2, status == 127 ? ": not found\n" : ": cannot be executed\n");
	exit(status);
}

static void take_streams(int in, int out, int err)
{
	my_syscall2(__NR_dup2, in, 0);
	my_syscall2(__NR_dup2, out, 1);
	my_syscall2(__NR_dup2, err, 2);
}

/* A command, or a login shell, on the first serial line as its terminal. */
static void __attribute__((noreturn)) run_on_terminal(void)
{
	static char *shell[] = { "-sh", 0 };
	unsigned short size[4] = { asked->rows, asked->columns, 0, 0 };
	int fd = line < 0 ? (int)my_syscall3(__NR_open, "/dev/ttyS0", O_RDWR, 0) : line;

	my_syscall3(__NR_ioctl, fd, TIOCSCTTY, 0);
	become_terminal(fd, size);
	take_streams(fd, fd, fd);
	if (asked->command)
		execute_command();
	execute_file("/bin/sh", shell);
	say(2, "berth-init: /bin/sh cannot be executed\n");
	exit(127);
}

static void futex(int operation, int value)
{
	my_syscall4(__NR_futex, &go, operation, value, 0);
}

static void let_go(void)
{
	__atomic_store_n(&go, 1, __ATOMIC_RELEASE);
	futex(1 /* FUTEX_WAKE */, 1);
}

static void __attribute__((noreturn)) run_child(void)
{
	my_syscall0(__NR_setsid);
	if (line >= 0)
		take_streams(input_reader, line, errors >= 0 ? errors : line);
	while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE))
		futex(0 /* FUTEX_WAIT */, 0);
	if (!is_piped(asked))
		run_on_terminal();
	execute_command();
}

/* Starts a process that runs `run` on this process's memory with a stack of its own. */
static int start(void (*run)(void), unsigned long flags, char *stack_end)
{
	register void *child __asm__("rbx") = run;
	register long tid __asm__("r10") = 0, tls __asm__("r8") = 0;
	long result;

	__asm__ volatile("syscall\n test %%rax, %%rax\n jnz 1f\n xor %%ebp, %%ebp\n call *%%rbx\n ud2\n1:"
			 : "=a"(result), "+r"(child)
			 : "0"(56l /* clone */), "D"(flags | 17 /* SIGCHLD */), "S"(stack_end), "d"(0l),
			   "r"(tid), "r"(tls)
			 : "rcx", "r11", "memory", "cc");
	return result;
}

static int start_child(const struct request *request)
{
	static char stack[16384] __attribute__((aligned(16)));
	int child;

	asked = request;
	child = start(run_child, CLONE_VM, stack + sizeof(stack));
	if (child < 0)
		fail("fork");
	if (input_reader >= 0) {
		handle(13 /* SIGPIPE */, (void (*)(int))1 /* SIG_IGN */);
		close(input_reader);
		my_syscall3(__NR_fcntl, input, 4 /* F_SETFL */, O_NONBLOCK);
	}
	return child;
}

/*
 * Does once, before a snapshot, what the first command of each guest would have to do: has busybox and the names that scripts
 * use in memory. Nothing of it may last, be drawn at random or differ from one guest to the next.
 */
static char *const *warm_words;

static void __attribute__((noreturn)) run_warm(void)
{
	int null = my_syscall3(__NR_open, "/dev/null", O_RDWR, 0);

	take_streams(null, null, null);
	my_syscall1(__NR_close, null);
	execute((char **)warm_words);
	exit(127);
}

static void warm_command(char *const *words)
{
	static char stack[16384] __attribute__((aligned(16)));
	long child;

	warm_words = words;
	child = start(run_warm, CLONE_VM | CLONE_VFORK, stack + sizeof(stack));
	my_syscall4(__NR_wait4, child, 0, 0, 0);
}

static void warm_up(void)
{
	static const char *const names[] = {
		"[", "awk", "basename", "cat", "chmod", "cp", "cut", "date", "dd", "df", "dirname", "dmesg", "echo", "env",
		"expr", "false", "find", "free", "grep", "head", "hostname", "id", "ifconfig", "ip", "kill", "ls", "mkdir",
		"mktemp", "mount", "mv", "nproc", "od", "ping", "printf", "ps", "pwd", "rm", "sed", "seq", "sh", "sha256sum",
		"sleep", "sort", "stat", "tail", "tar", "tee", "test", "touch", "tr", "true", "udhcpc", "umount", "uname",
		"wc", "wget", "xargs", "yes",
	};
	static char *const shell[] = { "sh", "-c", "true | cat; :", 0 };
	static char *const program[] = { "true", 0 };
	static const char zeros[33];
	char path[64];
	unsigned int i;
	int file = open("/usr/bin/busybox", O_RDONLY | O_CLOEXEC);

	while (read(file, incoming.text, LINE_MOST) > 0)
		;
	close(file);
	for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
		strlcpy(path, "/usr/bin/", sizeof(path));
		strlcat(path, names[i], sizeof(path));
		my_syscall2(__NR_access, path, 1 /* X_OK */);
	}
	warm_command(shell);
	warm_command(program);
	urandom = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	machine_id_file = open("/etc/machine-id", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
	write(machine_id_file, zeros, sizeof(zeros));
}
