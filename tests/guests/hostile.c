/*
 * The hostile guest. It scribbles over every port and every device's registers, hands devices rings and chains that
 * are wrong in every way the virtio specification knows, and at last checks that the devices serve an honest driver.
 *
 * It prints a line per stage, so that a hang shows where, and ends with status 0, or 3 for a device that died.
 */
#include "guest.h"

enum {
	DEVICE_ID = 0x08, FEATURES = 0x10, FEATURES_SELECT = 0x14, DRIVER_FEATURES = 0x20, DRIVER_FEATURES_SELECT = 0x24,
	QUEUE_SELECT = 0x30, QUEUE_MAX = 0x34, QUEUE_SIZE = 0x38, QUEUE_READY = 0x44, NOTIFY = 0x50, STATUS = 0x70,
	QUEUE_DESC = 0x80, QUEUE_AVAIL = 0x90, QUEUE_USED = 0xa0, CONFIG = 0x100,
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { RING = 8, ROUNDS = 48 };

struct desc {
	u64 addr;
	u32 len;
	u16 flags, next;
};

static struct desc table[RING] __attribute__((aligned(16)));
static struct desc indirect[RING] __attribute__((aligned(16)));
static u16 avail[2 + RING + 1] __attribute__((aligned(2)));
static u32 used[1 + 2 * RING + 1] __attribute__((aligned(4)));
static u8 buffer[4096] __attribute__((aligned(4096)));
static u8 garbage[4096] __attribute__((aligned(4096)));
static u64 state;

static u64 random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Addresses that no driver should name: outside RAM, at its edges, in devices, wrapping, odd. */
static u64 bad_address(void)
{
	static const u64 addresses[] = {
		0, 1, 0x9fc00, 0xa0000, 0xfffff, 64ul << 20, (64ul << 20) - 8, (64ul << 20) - 1, 0xcffffff8, 0xd0000000,
		0xd0000f00, 0xfec00000, 0xfee00000, 0xfffffff8, 1ul << 32, 1ul << 40, 1ul << 52, 1ul << 63, -16ul, -4096ul,
		-1ul, 0x7ffffffffffff000,
	};
	u64 pick = random() % (sizeof(addresses) / sizeof(*addresses) + 1);

	return pick < sizeof(addresses) / sizeof(*addresses) ? addresses[pick] : random();
}

static u32 bad_length(void)
{
	static const u32 lengths[] = { 0, 1, 7, 15, 16, 17, 513, 0x10000, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff };
	return lengths[random() % (sizeof(lengths) / sizeof(*lengths))];
}

static void select_queue(u64 base, u32 queue)
{
	write_32(base + QUEUE_SELECT, queue);
}

static void set_address(u64 at, u64 value)
{
	write_32(at, value);
	write_32(at + 4, value >> 32);
}

static void reset(u64 base)
{
	write_32(base + STATUS, 0);
}

/* An honest handshake up to FEATURES_OK, with every feature taken that is offered but those of other ring layouts. */
static void negotiate(u64 base)
{
	u64 features;

	reset(base);
	write_32(base + STATUS, ACKNOWLEDGE);
	write_32(base + STATUS, ACKNOWLEDGE | DRIVER);
	write_32(base + FEATURES_SELECT, 1);
	features = (u64)read_32(base + FEATURES) << 32;
	write_32(base + FEATURES_SELECT, 0);
	features |= read_32(base + FEATURES);
	features &= ~(1ul << 34 /* packed */ | 1ul << 29 /* event index */ | 1ul << 33 /* platform */ | 1ul << 40 /* reset */);
	write_32(base + DRIVER_FEATURES_SELECT, 0);
	write_32(base + DRIVER_FEATURES, features);
	write_32(base + DRIVER_FEATURES_SELECT, 1);
	write_32(base + DRIVER_FEATURES, features >> 32);
	write_32(base + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

static void set_up_queue(u64 base, u32 queue, u32 size)
{
	u32 i;

	for (i = 0; i < sizeof(avail) / sizeof(*avail); i++)
		avail[i] = 0;
	for (i = 0; i < sizeof(used) / sizeof(*used); i++)
		used[i] = 0;
	select_queue(base, queue);
	write_32(base + QUEUE_SIZE, size);
	set_address(base + QUEUE_DESC, (u64)table);
	set_address(base + QUEUE_AVAIL, (u64)avail);
	set_address(base + QUEUE_USED, (u64)used);
	write_32(base + QUEUE_READY, 1);
}

static void driver_ok(u64 base)
{
	write_32(base + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

static void notify(u64 base, u32 queue)
{
	write_32(base + NOTIFY, queue);
}

/* Fills the descriptors with one kind of wrong chain. */
static void wrong_chain(u32 kind)
{
	u32 i;

	for (i = 0; i < RING; i++)
		table[i] = (struct desc){ (u64)buffer, 16, NEXT, (i + 1) % RING };
	switch (kind) {
	case 0: /* a loop through all */
		break;
	case 1: /* a loop of one */
		table[0].next = 0;
		break;
	case 2: /* the next one lies outside the table */
		table[1].next = 0xffff;
		break;
	case 3: /* memory that is none */
		table[0] = (struct desc){ bad_address(), 16, NEXT, 1 };
		table[1] = (struct desc){ bad_address(), bad_length(), WRITE, 0 };
		break;
	case 4: /* lengths beyond all memory */
		table[0] = (struct desc){ (u64)buffer, bad_length(), NEXT, 1 };
		table[1] = (struct desc){ (u64)buffer, 0xffffffff, NEXT | WRITE, 2 };
		table[2] = (struct desc){ (u64)buffer, 0xffffffff, WRITE, 0 };
		break;
	case 5: /* writable before readable */
		table[0] = (struct desc){ (u64)buffer, 512, NEXT | WRITE, 1 };
		table[1] = (struct desc){ (u64)buffer, 16, 0, 0 };
		break;
	case 6: /* an indirect table whose entries are indirect and point at it */
		table[0] = (struct desc){ (u64)indirect, sizeof(indirect), INDIRECT, 0 };
		for (i = 0; i < RING; i++)
			indirect[i] = (struct desc){ (u64)indirect, sizeof(indirect), INDIRECT | NEXT, i };
		break;
	case 7: /* an indirect table of odd length, in no memory, followed by more */
		table[0] = (struct desc){ bad_address(), bad_length(), INDIRECT | NEXT | WRITE, 1 };
		break;
	case 8: /* a block request of a kind and place that no disk has */
		write_32((u64)buffer, random());
		write_64((u64)buffer + 8, random());
		table[0] = (struct desc){ (u64)buffer, 16, NEXT, 1 };
		table[1] = (struct desc){ (u64)buffer + 512, 512, NEXT | WRITE, 2 };
		table[2] = (struct desc){ (u64)buffer + 2048, 1, WRITE, 0 };
		break;
	case 9: /* a block request past the end of the disk, its status in no memory */
		write_32((u64)buffer, random() & 1);
		write_64((u64)buffer + 8, -1ul >> (random() & 63));
		table[0] = (struct desc){ (u64)buffer, 16, NEXT, 1 };
		table[1] = (struct desc){ (u64)buffer + 512, 512, NEXT | (random() & 1 ? WRITE : 0), 2 };
		table[2] = (struct desc){ bad_address(), bad_length(), WRITE, 0 };
		break;
	case 10: /* buffers that lie on the rings themselves */
		table[0] = (struct desc){ (u64)table, sizeof(table), NEXT | WRITE, 1 };
		table[1] = (struct desc){ (u64)avail, sizeof(avail), NEXT | WRITE, 2 };
		table[2] = (struct desc){ (u64)used, sizeof(used), WRITE, 0 };
		break;
	default: /* noise */
		for (i = 0; i < RING; i++)
			table[i] = (struct desc){ bad_address(), bad_length(), random() & 7, random() & 15 };
	}
}

static void post_wrong_chains(u64 base, u32 queues)
{
	u32 kind, queue;

	for (kind = 0; kind < 13; kind++) {
		for (queue = 0; queue < queues; queue++) {
			negotiate(base);
			set_up_queue(base, queue, RING);
			driver_ok(base);
			wrong_chain(kind);
			if (kind == 12) {
				/* More entries than the ring has, heads outside the table. */
				avail[2] = 0xffff;
				avail[1] = 0x8000;
			} else {
				avail[2] = 0;
				avail[3] = 1;
				avail[1] = 2;
			}
			notify(base, queue);
			notify(base, queue);
			/* And again while it may still work on the first. */
			avail[1] += random() & 0xff;
			notify(base, queue);
			read_32(base + STATUS);
		}
	}
}

static void place_rings_badly(u64 base)
{
	static const u32 sizes[] = { 0, 1, 3, 8, 255, 256, 1024, 32768, 32769, 65535, 0x80000000, 0xffffffff };
	u32 round;

	for (round = 0; round < ROUNDS; round++) {
		negotiate(base);
		select_queue(base, round & 3);
		write_32(base + QUEUE_SIZE, sizes[random() % (sizeof(sizes) / sizeof(*sizes))]);
		set_address(base + QUEUE_DESC, random() & 1 ? bad_address() : (u64)table);
		set_address(base + QUEUE_AVAIL, random() & 1 ? bad_address() : (u64)avail);
		set_address(base + QUEUE_USED, bad_address());
		write_32(base + QUEUE_READY, 1);
		driver_ok(base);
		notify(base, round & 3);
		/* Changes that are not allowed while the queue is live. */
		set_address(base + QUEUE_DESC, bad_address());
		write_32(base + QUEUE_SIZE, random());
		write_32(base + QUEUE_READY, round & 1);
		notify(base, random());
	}
}

/* Every register in every width with any value, in no order. */
static void scribble_registers(u64 base)
{
	u32 round;

	for (round = 0; round < 8 * ROUNDS; round++) {
		u64 at = base + (random() & (random() & 1 ? 0x1ff : 0xfff));
		u64 value = random();

		if (random() & 1)
			at &= ~3ul;
		if (at + 8 > base + 4096)
			continue;
		switch (random() & 7) {
		case 0: write_8(at, value); break;
		case 1: write_16(at, value); break;
		case 2: write_64(at, value); break;
		case 3: read_8(at); break;
		case 4: read_16(at); break;
		case 5: read_64(at); break;
		case 6: read_32(at); break;
		default: write_32(at, random() & 1 ? value : value & 15);
		}
	}
	reset(base);
}

/* Everything between RAM and 4 GiB and a bit above, but not the local APIC: what that does is KVM's. */
static void scribble_memory(void)
{
	u64 at;

	for (at = 0xd0000000; at < 0x120000000; at += 0x155550 + (random() & 0xfff)) {
		if (at >= 0xfee00000 && at < 0xfee01000)
			continue;
		/* A line must not come to mean INIT or reset: keep off the I/O APIC's data register. */
		if (at >= 0xfec00000 && at < 0xfec01000)
			continue;
		write_32(at, random());
		read_32(at);
		write_64(at + 1, random());
		read_64(at + 3);
		read_8(at + 7);
	}
	for (at = 0xfec00000; at < 0xfec01000; at += 4) {
		read_32(at);
		read_64(at);
		if (at != 0xfec00010)
			write_32(at, random());
	}
}

static int ends_the_machine(u32 port)
{
	return port == EXIT_PORT || port == PVPANIC || port == ACPI_SLEEP || port == ACPI_RESET ||
	       port == I8042_COMMAND || port == 0xcf9;
}

static void scribble_ports(void)
{
	u32 port, near;

	for (port = 0; port < 0x1000; port++) {
		/* The serial port's own output would bury the messages. */
		if (port >= COM1 - 4 && port < COM1 + 8)
			continue;
		in8(port);
		in16(port);
		in32(port);
		for (near = 0; near < 4; near++)
			if (ends_the_machine(port + near))
				break;
		if (near < 4)
			continue;
		out8(port, random());
		out16(port, random());
		out32(port, random());
	}
	for (port = 0x1000; port < 0xfff0; port += 61) {
		in32(port);
		out32(port, random());
	}
	/* Strings: one exit with many bytes. */
	for (port = 0; port < 0x700; port += 7) {
		u64 count = 64, at = (u64)buffer;

		if (ends_the_machine(port) || (port >= COM1 && port < COM1 + 8))
			continue;
		__asm__ volatile("rep outsb" : "+c"(count), "+S"(at) : "d"(port) : "memory");
		count = 64;
		at = (u64)buffer;
		__asm__ volatile("rep insb" : "+c"(count), "+D"(at) : "d"(port) : "memory");
	}
}

/* Whether an honest request comes back. Other kinds of device have no request that the host answers by itself. */
static int serves(u64 base)
{
	u32 kind = read_32(base + DEVICE_ID), spin;

	if (kind != 2 && kind != 4)
		return 1;
	negotiate(base);
	set_up_queue(base, 0, RING);
	driver_ok(base);
	if (kind == 4) { /* entropy */
		table[0] = (struct desc){ (u64)buffer, 64, WRITE, 0 };
	} else { /* block: read the first sector */
		write_64((u64)buffer, 0);
		write_64((u64)buffer + 8, 0);
		write_8((u64)buffer + 2048, 0xff);
		table[0] = (struct desc){ (u64)buffer, 16, NEXT, 1 };
		table[1] = (struct desc){ (u64)buffer + 512, 512, NEXT | WRITE, 2 };
		table[2] = (struct desc){ (u64)buffer + 2048, 1, WRITE, 0 };
	}
	avail[2] = 0;
	avail[1] = 1;
	notify(base, 0);
	for (spin = 0; spin < 200000; spin++) {
		if (*(volatile u16 *)((u64)used + 2) == 1) {
			int good = kind == 4 || read_8((u64)buffer + 2048) == 0;
			reset(base);
			return good;
		}
		/* An exit per look gives the device's thread its time. */
		read_32(base + STATUS);
	}
	return 0;
}

void __attribute__((noreturn)) be_hostile(u64 seed)
{
	u32 window, devices = 0;
	int good = 1;

	state = seed * 0x9e3779b97f4a7c15 + 1;
	for (window = 0; window < VIRTIO_WINDOWS; window++) {
		u64 base = VIRTIO_MMIO + window * 4096ul;

		if (read_32(base) != 0x74726976 || read_32(base + DEVICE_ID) == 0) {
			write_32(base + STATUS, random());
			continue;
		}
		devices++;
		print("registers ");
		scribble_registers(base);
		print("rings ");
		place_rings_badly(base);
		print("chains ");
		post_wrong_chains(base, read_32(base + DEVICE_ID) == 1 ? 2 : 1);
		scribble_registers(base);
		print("done\n");
	}
	print("memory ");
	scribble_memory();
	print("ports\n");
	scribble_ports();
	for (window = 0; window < VIRTIO_WINDOWS; window++) {
		u64 base = VIRTIO_MMIO + window * 4096ul;

		if (read_32(base) == 0x74726976 && read_32(base + DEVICE_ID) != 0 && !serves(base)) {
			print("a device no longer serves\n");
			good = 0;
		}
	}
	if (!devices)
		print("found no device\n");
	print("survived\n");
	/* The host looks at the monitor's memory now, then sends a byte. */
	while (!(in8(COM1 + 5) & 1))
		;
	end(good && devices ? 0 : 3);
}

void run_garbage(u64 seed)
{
	u32 i;

	state = seed * 0x9e3779b97f4a7c15 + 1;
	for (i = 0; i < sizeof(garbage); i += 8)
		write_64((u64)garbage + i, random());
	((void (*)(void))garbage)();
}
