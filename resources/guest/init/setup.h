/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is the same for every command: the root, the mounts, the loopback interface.
 */

static int system_mount(const char *source, const char *target, const char *type, unsigned long flags,
			const char *options)
{
	return my_syscall5(__NR_mount, source, target, type, flags, options);
}

/* A writable root: the image below, a tmpfs above. */
static void make_root(void)
{
	if (system_mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"))
		fail("mount of a tmpfs on /run");
	mkdir("/run/upper", 0755);
	mkdir("/run/work", 0755);
	mkdir("/run/root", 0755);
	if (system_mount("overlay", "/run/root", "overlay", 0,
			 "lowerdir=/,upperdir=/run/upper,workdir=/run/work"))
		fail("mount of the overlay root");
	if (chdir("/run/root") || system_mount("/run/root", "/", 0, MS_MOVE, 0) || chroot("."))
		fail("change to the overlay root");
	if (system_mount("dev", "/dev", "devtmpfs", MS_NOSUID, 0))
		fail("mount of /dev");
	system_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
	system_mount("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
	system_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
	/* Not part of the overlay: on it containers can lay overlays of their own. */
	system_mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
	mkdir("/dev/pts", 0755);
	system_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=666");
	mkdir("/dev/shm", 0777);
	system_mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, 0);
}

/*
 * Small reads from the root disk. A page that was read ahead in vain costs an interpreted kernel a millisecond; a request
 * to a disk that lies in the host's memory costs little anywhere.
 */
static void read_little_ahead(void)
{
	int disk = open("/dev/vda", O_RDONLY | O_CLOEXEC);

	if (disk >= 0) {
		my_syscall3(__NR_ioctl, disk, 0x1262 /* BLKRASET */, 32 /* sectors */);
		close(disk);
	}
}

struct ifreq_flags {
	char name[16];
	short flags;
	char rest[22];
};

static void loopback_up(void)
{
	struct ifreq_flags request = { .name = "lo", .flags = 1 /* IFF_UP */ };
	int fd = my_syscall3(__NR_socket, 2 /* AF_INET */, 2 /* SOCK_DGRAM */, 0);

	if (fd < 0)
		return;
	ioctl(fd, 0x8914 /* SIOCSIFFLAGS */, &request);
	close(fd);
}

/*
 * What must not be the same in two guests that were started from one snapshot: entropy first, since the others may draw
 * from it.
 */
static int machine_id_file = -1, urandom = -1;

static void make_own(const struct request *request)
{
	if (request->entropy_size) {
		struct {
			int bits, size;
			unsigned char bytes[sizeof(request->entropy)];
		} seed = { request->entropy_size * 8, request->entropy_size, { 0 } };

		if (urandom < 0)
			urandom = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
		memcpy(seed.bytes, request->entropy, request->entropy_size);
		if (ioctl(urandom, 0x40085203 /* RNDADDENTROPY */, &seed))
			fail("adding entropy");
		ioctl(urandom, 0x5207 /* RNDRESEEDCRNG */, 0);
	}
	if (request->has_time) {
		long now[2] = { request->seconds, request->nanoseconds };

		if (my_syscall2(__NR_clock_settime, 0 /* CLOCK_REALTIME */, now))
			fail("setting the clock");
	}
	if (request->machine_id) {
		char line[33];

		memcpy(line, request->machine_id, 32);
		line[32] = '\n';
		if (machine_id_file < 0)
			machine_id_file = open("/etc/machine-id", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
		if (my_syscall4(__NR_pwrite64, machine_id_file, line, sizeof(line), 0) != sizeof(line))
			fail("writing /etc/machine-id");
	} else if (machine_id_file >= 0) {
		unlink("/etc/machine-id");
	}
	if (machine_id_file >= 0)
		close(machine_id_file);
	if (request->hostname) {
		/* Not an argument below: a call there would take the registers that hold the others. */
		unsigned long length = strlen(request->hostname);

		if (my_syscall2(__NR_sethostname, request->hostname, length) < 0)
			fail("setting the host's name");
	}
}
