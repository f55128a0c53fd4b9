/* The init of an initramfs, for the test that one arrives: says so and ends the machine with status 21 by the exit port. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int main(void)
{
	unsigned char status = 21;
	int ports;

	/* The kernel's own initramfs has the console and no more. */
	mknod("/dev/port", S_IFCHR | 0600, makedev(1, 4));
	ports = open("/dev/port", O_WRONLY);
	puts("init of the initrd");
	fflush(stdout);
	if (pwrite(ports, &status, 1, 0xf4) != 1)
		perror("/dev/port");
	/* No exit port: the machine ends all the same, in another way. */
	reboot(RB_AUTOBOOT);
	return 1;
}
