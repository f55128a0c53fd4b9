/*
 * Both ways into the I/O bench guest: Linux's 64-bit entry (rsi = boot_params) and PVH (32-bit, ebx = hvm_start_info).
 *
 * Both end in start(boot information, which entry) in ring 3, IOPL 3, interrupts off, with the first 5 GiB mapped one to one and open
 * to ring 3: page tables, descriptor tables and device registers too. So ring 0, which some hosts interpret, is left after some
 * thirty instructions and entered again only to wait for an interrupt.
 */
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
	movl	%esi, %edi
	xorl	%esi, %esi		/* Entry::Linux64 */
	jmp	long_mode

	.code32
pvh_start:
	cli
	movl	%ebx, %edi
	movl	$1, %esi		/* Entry::Pvh */
	enter_long_mode

	.code64
long_mode:
	movq	$pml4, %rax
	movq	%rax, %cr3
	movq	%cr4, %rax
	orl	$0x600, %eax		/* OSFXSAVE, OSXMMEXCPT: ring 3 uses SSE */
	movq	%rax, %cr4
	movq	%cr0, %rax
	andl	$0xfffffff3, %eax	/* neither EM nor TS */
	orl	$2, %eax		/* MP */
	movq	%rax, %cr0
	movl	$tss, %eax
	movw	%ax, tss_descriptor + 2
	shrl	$16, %eax
	movb	%al, tss_descriptor + 4
	movb	%ah, tss_descriptor + 7
	lgdt	gdt_pointer
	lidt	idt_pointer
	movl	$0x28, %eax
	ltr	%ax
	xorl	%eax, %eax
	movl	%eax, %ss
	movl	$0x23, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movq	$ring0_stack_end, %rsp
	pushq	$0x23
	pushq	$ring3_stack_end - 8	/* as if start had been called */
	pushq	$0x3002			/* IOPL 3 */
	pushq	$0x1b
	pushq	$start
	iretq

/* UD2 in ring 3: waits for an interrupt. Ring 3 runs with interrupts off, so one that came before is taken here too. */
	.globl wait_gate
wait_gate:
	addq	$2, (%rsp)
	sti
	hlt
	cli
	iretq

/* Any interrupt: counted. Ring 3 acknowledges it. */
	.globl interrupt_gate
interrupt_gate:
	incq	interrupts
	iretq

/* A fault with an error code: goes on in fault(error code, instruction, address) in ring 3. */
	.globl fault_gate
fault_gate:
	popq	%rdi
	popq	%rsi
	movq	%cr2, %rdx
	pushq	$fault
	iretq

	.data
	.balign	8
	.globl interrupts
interrupts:
	.quad	0
gdt:	.quad	0, 0x00af9b000000ffff	/* ring 0 code */
	.quad	0x00cf93000000ffff	/* ring 0 data */
	.quad	0x00affb000000ffff	/* ring 3 code */
	.quad	0x00cff3000000ffff	/* ring 3 data */
tss_descriptor:
	.quad	0x0000890000002068, 0
gdt_pointer:
	.word	. - gdt - 1
	.quad	gdt
idt_pointer:
	.word	256 * 16 - 1
	.quad	idt
	.balign	16
tss:	.long	0
	.quad	ring0_stack_end
	.fill	90, 1, 0
	.word	104			/* all ports are open, to hosts that ask this and not IOPL too */
	.fill	8192, 1, 0
	.byte	0xff

/* Present, writable, open to ring 3, accessed; pages of 2 MiB, written to. */
	.balign	4096
	.globl pml4
pml4:	.quad	pdpt + 0x27
	.fill	511, 8, 0
pdpt:	.quad	pd + 0x27, pd + 0x1027, pd + 0x2027, pd + 0x3027, pd + 0x4027
	.fill	507, 8, 0
pd:
	.set	page, 0
	.rept	5 * 512
	.quad	page + 0xe7
	.set	page, page + 0x200000
	.endr

	.bss
	.balign	4096
	.globl idt
idt:	.fill	4096
	.globl spare_tables
spare_tables:
	.fill	4 * 4096
	.fill	4096
ring0_stack_end:
	.fill	65536
ring3_stack_end:
