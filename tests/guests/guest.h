/* What the parts of the test guest share: the machine's ports, and access to ports and memory of every width. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* Berth's arch/src/x86_64/layout.rs has these. */
enum {
	COM1 = 0x3f8,
	I8042_COMMAND = 0x64,
	EXIT_PORT = 0xf4,
	READY_PORT = 0xf5,
	PVPANIC = 0x505,
	ACPI_SLEEP = 0x600,
	ACPI_RESET = 0x602,
	ACPI_EVENTS = 0x604,
};
#define VIRTIO_MMIO 0xd0000000ul
#define VIRTIO_WINDOWS 64

static inline void out8(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline void out16(u16 port, u16 v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port)); }
static inline void out32(u16 port, u32 v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port)); }
static inline u8 in8(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 in16(u16 port) { u16 v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 in32(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

/* Single moves of one width, so that the emulator of an interpreting host sees nothing else. */
#define ACCESSORS(type, name)                                                                                          \
	static inline type read_##name(u64 at)                                                                         \
	{                                                                                                              \
		type v;                                                                                                \
		__asm__ volatile("mov %1, %0" : "=r"(v) : "m"(*(volatile type *)at));                                  \
		return v;                                                                                              \
	}                                                                                                              \
	static inline void write_##name(u64 at, type v)                                                                \
	{                                                                                                              \
		__asm__ volatile("mov %1, %0" : "=m"(*(volatile type *)at) : "r"(v) : "memory");                       \
	}
ACCESSORS(u8, 8)
ACCESSORS(u16, 16)
ACCESSORS(u32, 32)
ACCESSORS(u64, 64)

void print(const char *text);
void __attribute__((noreturn)) end(u8 status);
/* Does everything a driver must not do to every device it finds, then sees whether they still work. */
void __attribute__((noreturn)) be_hostile(u64 seed);
/* Jumps into random bytes. */
void run_garbage(u64 seed);
