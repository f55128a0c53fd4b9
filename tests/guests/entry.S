/*
 * Both ways into the test guest: Linux's 64-bit entry (rsi = boot_params) and PVH (32-bit, ebx = hvm_start_info).
 *
 * Both end in guest_main(command line) in long mode, interrupts off, the first 5 GiB mapped one to one by tables that
 * lie ready in the file: on interpreted hosts filling them in would cost more than all else.
 */
#include "long_mode.S"

	.section .note.xen, "a", @note
	.balign	4
	.long	4, 8, 18		/* name and descriptor lengths, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.quad	pvh_start

	.section .text.entry, "ax"
	.code64
	.globl _start
_start:
	cli
	movl	0x228(%rsi), %edi	/* boot_params.hdr.cmd_line_ptr */
	movb	$'6', via
	jmp	long_mode

	.code32
pvh_start:
	cli
	movl	24(%ebx), %edi		/* hvm_start_info.cmdline_paddr */
	movb	$'P', via
	enter_long_mode

	.code64
long_mode:
	movq	$pml4, %rax
	movq	%rax, %cr3
	movq	$stack_end, %rsp
	xorl	%eax, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	cld
	call	guest_main
1:	hlt
	jmp	1b

	.data
	.globl via
via:	.byte	0
	.balign	8
gdt:	.quad	0, 0x00af9b000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.quad	gdt

	.balign	4096
pml4:	.quad	pdpt + 3
	.fill	511, 8, 0
pdpt:	.quad	pd + 3, pd + 0x1003, pd + 0x2003, pd + 0x3003, pd + 0x4003
	.fill	507, 8, 0
pd:
	.set	page, 0
	.rept	5 * 512
	.quad	page + 0x83		/* present, writable, 2 MiB */
	.set	page, page + 0x200000
	.endr

	.bss
	.balign	16
	.fill	16384
stack_end:
	.section .note.GNU-stack, "", @progbits
