/* From PVH's 32-bit protected mode to `long_mode`, with the page tables at `pml4` and the code segment at 8 of the table that
 * `gdt_pointer` names. */
	.macro	enter_long_mode
	movl	%cr4, %eax
	orl	$0x20, %eax		/* PAE */
	movl	%eax, %cr4
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	/* EFER.LME */
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000001, %eax	/* PG, PE */
	movl	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$8, $long_mode
	.endm
