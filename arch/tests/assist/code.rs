//! What the guests run. It is position-independent, lies in this program as data, and is copied to the guest, never run here.

use super::{CODE, KERNEL};

core::arch::global_asm!(
    r#"
    .section .rodata.berth_guest, "a"
    .balign 4096
    .globl berth_guest_start
berth_guest_start:

    // Vectors that count and return: rdi is preserved; the frame is below.
    .macro stub name vector code
    .globl berth_guest_\name
berth_guest_\name:
    .if \code == 0
    push 0
    .endif
    push \vector
    jmp berth_guest_fault
    .endm

    stub vector1, 1, 0
    stub vector3, 3, 0
    stub vector6, 6, 0
    stub vector7, 7, 0
    stub vector13, 13, 1
    stub vector128, 128, 0

    // Page fault: endbr64 first, as kernels have. Present the page (all of USER_PT's are only not present), count, return. A
    // fault elsewhere, or one that this does not cure, is reported.
    .globl berth_guest_vector14
berth_guest_vector14:
    endbr64
    cld
    push 14
    push rax
    push rbx
    mov rax, cr2
    mov rbx, rax
    shr rbx, 21
    cmp rbx, 0x600000 >> 21
    jne 1f
    test qword ptr [rsp + 24], 1
    jnz 1f
    shr rax, 12
    and eax, 511
    mov rbx, 0xffffffff80015000
    or qword ptr [rbx + rax * 8], 1
    inc qword ptr gs:[0x58]
    pop rbx
    pop rax
    add rsp, 16
    iretq
1:  pop rbx
    pop rax

    // gs: is the vCPU's data page. Stores vector, error code, RIP, RFLAGS and CS, and ends the guest with the vector; if the host runs it
    // on, returns to where the frame says.
berth_guest_fault:
    mov gs:[0x00], rax
    pop rax
    mov gs:[0x10], rax
    pop qword ptr gs:[0x18]
    push rax
    mov rax, [rsp + 8]
    mov gs:[0x20], rax
    mov rax, [rsp + 16]
    mov gs:[0x30], rax
    mov rax, [rsp + 24]
    mov gs:[0x28], rax
    mov rax, cr2
    mov gs:[0x38], rax
    pop rax
    out 0xf4, al
    mov rax, gs:[0x00]
    iretq

    // System calls. rax: 0 nothing, 1 end with dil, 2 xsavec to [rdi] with rdx:rsi, 3 xrstor from [rdi] with rdx:rsi,
    // 4 xsave, 5 xsaveopt, 6 store CS and SS at gs:0x40,
    // 7 map the page at rdi to the frame rsi.
    .globl berth_guest_syscall
berth_guest_syscall:
    mov gs:[0x08], rsp
    mov rsp, gs:[0x50]
    push rcx
    push r11
    inc qword ptr gs:[0x48]
    cmp rax, 1
    je 1f
    cmp rax, 2
    je 2f
    cmp rax, 3
    je 3f
    cmp rax, 4
    je 4f
    cmp rax, 5
    je 5f
    cmp rax, 6
    je 6f
    cmp rax, 7
    je 7f
9:  pop r11
    pop rcx
    mov rsp, gs:[0x08]
    sysretq
1:  mov eax, edi
    out 0xf4, al
    jmp 9b
2:  mov rax, rsi
    xsavec64 [rdi]
    jmp 9b
3:  mov rax, rsi
    xrstor64 [rdi]
    jmp 9b
4:  mov rax, rsi
    xsave64 [rdi]
    jmp 9b
5:  mov rax, rsi
    xsaveopt64 [rdi]
    jmp 9b
6:  mov ax, cs
    mov gs:[0x40], ax
    mov ax, ss
    mov gs:[0x42], ax
    mov rax, rsp
    mov gs:[0x60], rax
    pushfq
    pop qword ptr gs:[0x68]
    jmp 9b

7:  mov rax, rdi
    shr rax, 12
    and eax, 511
    lea rdx, [rsi + 0x67]
    mov r8, 0xffffffff80015000
    mov [r8 + rax * 8], rdx
    invlpg [rdi]
    jmp 9b

    // Ring 0: each instruction that is to be completed, then the results at rdi.
    .globl berth_guest_ring0
berth_guest_ring0:
    int3
    fwait
    fnclex
    fninit
    emms
    mov eax, 0xf0f0
    popcnt rcx, rax
    mov [rdi], rcx
    mov ecx, 1
    crc32 rcx, qword ptr [rdi]
    mov [rdi + 8], rcx
    stac
    pushfq
    pop qword ptr [rdi + 16]
    clac
    pushfq
    pop qword ptr [rdi + 24]
    tzcnt rcx, rax
    mov [rdi + 32], rcx
    rdrand rcx
    setc byte ptr [rdi + 40]
    xor eax, eax
    xor edx, edx
    mov ebx, 7
    mov ecx, 9
    lock cmpxchg16b [rdi + 48]
    setz byte ptr [rdi + 41]
    lock cmpxchg16b [rdi + 48]
    setz byte ptr [rdi + 42]
    mov [rdi + 64], rax
    mov [rdi + 72], rdx
    rdfsbase rcx
    mov [rdi + 80], rcx
    lea rcx, [rdi + 0x123]
    wrfsbase rcx
    rdfsbase rcx
    mov [rdi + 88], rcx
    stmxcsr [rdi + 96]
    ldmxcsr [rdi + 96]
    clflush [rdi]
    sfence
    prefetcht0 [rdi]
    pause
    endbr64
    mov eax, 3
    out 0xf4, al
    ud2
    mov eax, 5
    out 0xf4, al
    // #GP: a misaligned area.
    mov eax, 7
    xor edx, edx
    xsavec64 [rdi + 8]
    mov eax, 5
    out 0xf4, al

    // Ring 0: rsi additions to the 128-bit word at rdi by cmpxchg16b.
    .globl berth_guest_hammer
berth_guest_hammer:
    mov rax, [rdi]
    mov rdx, [rdi + 8]
1:  mov rbx, rax
    mov rcx, rdx
    add rbx, 1
    adc rcx, 3
    lock cmpxchg16b [rdi]
    jnz 1b
    dec rsi
    jnz 1b
    xor eax, eax
    out 0xf4, al

    // Ring 0: rsi rounds of an instruction, for measuring.
    .macro round name instruction
    .globl berth_guest_loop_\name
berth_guest_loop_\name:
    mov r8, rdi
1:  \instruction
    dec rsi
    jnz 1b
    xor eax, eax
    out 0xf4, al
    .endm
    .macro save
    mov eax, -1
    mov edx, -1
    xsavec64 [rdi]
    .endm
    .macro save_and_restore
    save
    xrstor64 [rdi]
    .endm
    .macro clear_page
    mov rdi, r8
    mov ecx, 512
    xor eax, eax
    rep stosq
    .endm
    .macro copy_page
    mov rdi, r8
    mov r9, rsi
    mov ecx, 512
    lea rsi, [r8 + 4096]
    rep movsq
    mov rsi, r9
    .endm

    round nothing
    round out, "mov al, 1; out 0xf4, al"
    round popcnt, "popcnt rax, rsi"
    round xsave, save_and_restore
    round stos, clear_page
    round movs, copy_page

    // Ring 3: rsi system calls that do nothing, then the end with what went wrong.
    .globl berth_guest_calls
berth_guest_calls:
    mov r15, rsp
    mov r14, rsi
1:  xor eax, eax
    stc
    pushfq
    pop r13
    syscall
2:  lea rbx, [rip + 2b]
    cmp rbx, rcx
    mov edi, 2
    jne 9f
    cmp r11, r13
    mov edi, 3
    jne 9f
    cmp rsp, r15
    mov edi, 4
    jne 9f
    dec r14
    jnz 1b
    mov eax, 6
    syscall
    mov edi, 0
9:  mov eax, 1
    syscall
    ud2

    // Ring 3: touches rsi pages from rdi on, then the end.
    .globl berth_guest_touch
berth_guest_touch:
    mov rax, [rdi]
    add rdi, 4096
    dec rsi
    jnz berth_guest_touch
    mov eax, 1
    xor edi, edi
    syscall

    // Ring 3: saves and restores two sets of vector registers, in areas at rdi and rdi + 4096; results at rdi + 8192.
    .globl berth_guest_vectors
berth_guest_vectors:
    mov r12, rdi
    mov rax, 0x1111111111111111
    vmovq xmm0, rax
    vpbroadcastq ymm3, xmm0
    mov rdi, r12
    call 2f
    mov rax, 0x2222222222222222
    vmovq xmm0, rax
    vpbroadcastq ymm3, xmm0
    lea rdi, [r12 + 4096]
    call 2f
    mov rdi, r12
    call 3f
    vmovdqu [r12 + 8192], ymm3
    lea rdi, [r12 + 4096]
    call 3f
    vmovdqu [r12 + 8192 + 32], ymm3
    vzeroall
    mov rdi, r12
    call 3f
    vmovdqu [r12 + 8192 + 64], ymm3
    mov eax, 1
    xor edi, edi
    syscall
2:  mov eax, r13d
    mov esi, -1
    mov edx, -1
    syscall
    ret
3:  mov eax, 3
    mov esi, -1
    mov edx, -1
    syscall
    ret

    // Ring 3: reads the page at rdi, has it mapped to the frame rsi, reads it again; both values go to r13.
    .globl berth_guest_remap
berth_guest_remap:
    mov r12, [rdi]
    mov eax, 7
    syscall
    mov rbx, [rdi]
    mov [r13], r12
    mov [r13 + 8], rbx
    mov eax, 1
    xor edi, edi
    syscall

    // Ring 3: jumps to the system call's entry without a system call.
    .globl berth_guest_jump
berth_guest_jump:
    mov r11d, 0x3202
    mov rcx, rdi
    jmp rsi

    .globl berth_guest_end
berth_guest_end:
    .previous
"#
);

macro_rules! labels {
    ($($name:ident = $symbol:ident),* $(,)?) => {
        unsafe extern "C" {
            $(static $symbol: u8;)*
        }
        /// A place in the guest's code.
        #[derive(Debug, Clone, Copy)]
        pub(crate) enum Label { $($name),* }
        impl Label {
            fn address(self) -> *const u8 {
                match self { $(Self::$name => &raw const $symbol),* }
            }
        }
    };
}

labels! {
    Start = berth_guest_start,
    Vector1 = berth_guest_vector1,
    Vector3 = berth_guest_vector3,
    Vector6 = berth_guest_vector6,
    Vector7 = berth_guest_vector7,
    Vector13 = berth_guest_vector13,
    Vector14 = berth_guest_vector14,
    Vector128 = berth_guest_vector128,
    Syscall = berth_guest_syscall,
    Ring0 = berth_guest_ring0,
    Hammer = berth_guest_hammer,
    Loop = berth_guest_loop_nothing,
    LoopOut = berth_guest_loop_out,
    LoopPopcnt = berth_guest_loop_popcnt,
    LoopXsave = berth_guest_loop_xsave,
    LoopStos = berth_guest_loop_stos,
    LoopMovs = berth_guest_loop_movs,
    Calls = berth_guest_calls,
    Touch = berth_guest_touch,
    Vectors = berth_guest_vectors,
    Remap = berth_guest_remap,
    Jump = berth_guest_jump,
    End = berth_guest_end,
}

impl Label {
    fn offset(self) -> u64 {
        self.address() as u64 - Self::Start.address() as u64
    }

    /// Its address for the kernel.
    pub(crate) fn kernel(self) -> u64 {
        KERNEL + CODE + self.offset()
    }

    /// Its address for user space.
    pub(crate) fn user(self) -> u64 {
        CODE + self.offset()
    }
}

/// All of it.
pub(crate) fn bytes() -> &'static [u8] {
    // SAFETY: the two labels are the ends of one block of assembled bytes in this program's read-only data.
    unsafe { std::slice::from_raw_parts(Label::Start.address(), Label::End.offset() as usize) }
}
