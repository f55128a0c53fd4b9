//! The interpreter against the CPU that runs the tests: the same instruction, registers, flags and memory must end alike.

use std::ptr;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use kvm_bindings::kvm_regs;
use proptest::prelude::*;

use super::integer::Flow;
use super::privilege::Privileges;
use crate::x86_64::assist::AssistCounts;
use crate::x86_64::assist::machine::{Cpu, Machine, rflags};
use crate::x86_64::assist::mock::{DATA, Mock, regs, sregs};

const SIZE: usize = 4096;
const MEMORY: usize = 256;

/// RAX, RCX, RDX, RBX, RSI, RDI, R8, R9 and RFLAGS.
type State = [u64; 9];

/// A page of code that loads a state, executes one instruction and stores the state.
struct Native {
    page: *mut u8,
}

impl Native {
    fn new() -> Self {
        // SAFETY: a new anonymous mapping, at no address in particular, touches no other memory.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        Self { page: page.cast() }
    }

    fn run(&mut self, instruction: &[u8], state: &mut State) {
        let mut code = vec![0x53, 0x55, 0x41, 0x57]; // push rbx; push rbp; push r15
        code.extend([0x49, 0x89, 0xff]); // mov r15, rdi
        code.extend([0x41, 0xff, 0x77, 64, 0x9d]); // push [r15 + 64]; popfq
        let moves = |code: &mut Vec<u8>, opcode: u8| {
            // mov register, [r15 + 8 * index] or the other way round
            for (index, (rex, register)) in [
                (0x49, 0),
                (0x49, 1),
                (0x49, 2),
                (0x49, 3),
                (0x49, 6),
                (0x49, 7),
                (0x4d, 0),
                (0x4d, 1),
            ]
            .into_iter()
            .enumerate()
            {
                code.extend([rex, opcode, 0x47 | register << 3, 8 * index as u8]);
            }
        };
        moves(&mut code, 0x8b);
        code.extend(instruction);
        code.push(0x9c); // pushfq
        moves(&mut code, 0x89);
        code.extend([0x41, 0x8f, 0x47, 64]); // pop [r15 + 64]
        code.extend([0xfc, 0x41, 0x5f, 0x5d, 0x5b, 0xc3]); // cld; pop r15; pop rbp; pop rbx; ret
        assert!(code.len() <= SIZE);
        // SAFETY: the page has `SIZE` bytes and nothing runs in it now.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len()) };
        // SAFETY: the page holds a function of this type: it keeps the registers that callees keep, and the one instruction in it was
        // checked to use no other registers and no memory but that at RDI and RSI, which `state` points at its own.
        let function: extern "sysv64" fn(*mut State) = unsafe { std::mem::transmute(self.page) };
        function(state);
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new` and nothing refers to it any more.
        unsafe { libc::munmap(self.page.cast(), SIZE) };
    }
}

/// Flags that the manual leaves undefined.
fn undefined(instruction: &Instruction, count: u64) -> u64 {
    use rflags::{AF, CF, OF, PF, SF, STATUS, ZF};
    match instruction.mnemonic() {
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test => AF,
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar | Mnemonic::Shld | Mnemonic::Shrd => {
            let size = Cpu::operand_size(instruction, 0) as u64;
            let beyond = if count >= 8 * size { CF } else { 0 };
            AF | beyond | if count == 1 { 0 } else { OF }
        }
        Mnemonic::Rol | Mnemonic::Ror if count != 1 => OF,
        Mnemonic::Mul | Mnemonic::Imul => SF | ZF | AF | PF,
        Mnemonic::Div | Mnemonic::Idiv => STATUS,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => OF | SF | AF | PF,
        Mnemonic::Bsf | Mnemonic::Bsr => STATUS & !ZF,
        _ => 0,
    }
}

/// Opcodes with a ModRM byte, and how many bytes of immediate follow with each operand size (2, 4 or 8).
const MODRM: &[(&[u8], [usize; 3])] = &[
    (&[0x00], [0; 3]),
    (&[0x01], [0; 3]),
    (&[0x02], [0; 3]),
    (&[0x03], [0; 3]),
    (&[0x09], [0; 3]),
    (&[0x11], [0; 3]),
    (&[0x10], [0; 3]),
    (&[0x19], [0; 3]),
    (&[0x1a], [0; 3]),
    (&[0x21], [0; 3]),
    (&[0x29], [0; 3]),
    (&[0x2b], [0; 3]),
    (&[0x31], [0; 3]),
    (&[0x38], [0; 3]),
    (&[0x39], [0; 3]),
    (&[0x3b], [0; 3]),
    (&[0x63], [0; 3]),
    (&[0x69], [2, 4, 4]),
    (&[0x6b], [1; 3]),
    (&[0x80], [1; 3]),
    (&[0x81], [2, 4, 4]),
    (&[0x83], [1; 3]),
    (&[0x84], [0; 3]),
    (&[0x85], [0; 3]),
    (&[0x86], [0; 3]),
    (&[0x87], [0; 3]),
    (&[0x88], [0; 3]),
    (&[0x89], [0; 3]),
    (&[0x8a], [0; 3]),
    (&[0x8b], [0; 3]),
    (&[0x8d], [0; 3]),
    (&[0xc0], [1; 3]),
    (&[0xc1], [1; 3]),
    (&[0xc6], [1; 3]),
    (&[0xc7], [2, 4, 4]),
    (&[0xd0], [0; 3]),
    (&[0xd1], [0; 3]),
    (&[0xd2], [0; 3]),
    (&[0xd3], [0; 3]),
    // TEST with an immediate is group 3 as well: see `instruction`.
    (&[0xf6], [0; 3]),
    (&[0xf7], [0; 3]),
    (&[0xfe], [0; 3]),
    (&[0xff], [0; 3]),
    (&[0x0f, 0x44], [0; 3]),
    (&[0x0f, 0x4c], [0; 3]),
    (&[0x0f, 0x47], [0; 3]),
    (&[0x0f, 0x92], [0; 3]),
    (&[0x0f, 0x9f], [0; 3]),
    (&[0x0f, 0xa3], [0; 3]),
    (&[0x0f, 0xab], [0; 3]),
    (&[0x0f, 0xb3], [0; 3]),
    (&[0x0f, 0xbb], [0; 3]),
    (&[0x0f, 0xba], [1; 3]),
    (&[0x0f, 0xa4], [1; 3]),
    (&[0x0f, 0xa5], [0; 3]),
    (&[0x0f, 0xac], [1; 3]),
    (&[0x0f, 0xad], [0; 3]),
    (&[0x0f, 0xaf], [0; 3]),
    (&[0x0f, 0xb0], [0; 3]),
    (&[0x0f, 0xb1], [0; 3]),
    (&[0x0f, 0xb6], [0; 3]),
    (&[0x0f, 0xb7], [0; 3]),
    (&[0x0f, 0xbc], [0; 3]),
    (&[0x0f, 0xbd], [0; 3]),
    (&[0x0f, 0xbe], [0; 3]),
    (&[0x0f, 0xbf], [0; 3]),
    (&[0x0f, 0xc0], [0; 3]),
    (&[0x0f, 0xc1], [0; 3]),
];

/// Opcodes without one.
const PLAIN: &[&[u8]] = &[
    &[0x98],
    &[0x99],
    &[0x0f, 0xc8],
    &[0x0f, 0xcb],
    &[0xf5],
    &[0xf8],
    &[0xf9],
    &[0x9f],
    &[0x90],
    &[0xa4],
    &[0xa5],
    &[0xaa],
    &[0xab],
    &[0xac],
    &[0xad],
    &[0xae],
    &[0xaf],
    &[0xa6],
    &[0xa7],
];

fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let prefixes = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        0..8u8,
        proptest::collection::vec(any::<u8>(), 8),
    );
    let modrm = (proptest::sample::select(MODRM), any::<u8>(), prefixes).prop_map(
        |((opcode, immediate), modrm, (short, wide, lock, extend, bytes))| {
            let mut code = Vec::new();
            // Registers 0 to 3, 6, 7, 8 and 9; memory is at [rdi].
            let register = [0, 1, 2, 3, 6, 7, 0, 1][usize::from(modrm >> 3 & 7)];
            let memory = modrm >> 6 < 2;
            let rm = if memory {
                7
            } else {
                [0, 1, 2, 3, 6, 7, 0, 1][usize::from(modrm & 7)]
            };
            let high = if register < 2 { extend & 4 } else { 0 };
            let low = if rm < 2 && !memory { extend & 1 } else { 0 };
            if lock && memory {
                code.push(0xf0);
            }
            if short {
                code.push(0x66);
            }
            code.push(0x40 | u8::from(wide) << 3 | high | low);
            code.extend(opcode);
            // Groups use all eight values of the field.
            let group = matches!(
                opcode,
                [
                    0x80 | 0x81 | 0x83 | 0xc0 | 0xc1 | 0xd0..=0xd3 | 0xf6 | 0xf7 | 0x0f,
                    ..
                ]
            );
            let group = group && (opcode[0] != 0x0f || opcode[1] == 0xba);
            let field = if group { modrm >> 3 & 7 } else { register };
            let field = match opcode {
                [0xfe | 0xff] => field & 1,
                [0xc6 | 0xc7] => 0,
                [0xf6 | 0xf7] if field < 2 => 2,
                _ => field,
            };
            if group || matches!(opcode, [0xfe | 0xff | 0xc6 | 0xc7]) {
                let rex = code.len() - opcode.len() - 1;
                code[rex] &= !4;
            }
            code.push(if memory { 0x07 } else { 0xc0 } | field << 3 | rm);
            let size = if wide { 2 } else { usize::from(!short) };
            code.extend(&bytes[..immediate[size]]);
            code
        },
    );
    let plain = (
        proptest::sample::select(PLAIN),
        any::<bool>(),
        any::<bool>(),
        0..3u8,
    )
        .prop_map(|(opcode, short, wide, repeat)| {
            let mut code = Vec::new();
            let string = matches!(opcode, [0xa4..=0xa7 | 0xaa..=0xaf]);
            if string && repeat != 0 && !matches!(opcode, [0xac | 0xad]) {
                code.push(0xf1 + repeat);
            }
            if short && opcode[0] != 0x0f {
                code.push(0x66);
            }
            if wide {
                code.push(0x48);
            }
            code.extend(opcode);
            code
        });
    prop_oneof![6 => modrm, 1 => plain]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..70,
        Just(u64::MAX),
        Just(1 << 63),
        Just(0x8000_0000),
        any::<i8>().prop_map(|v| v as u64)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(10_000)))]

    #[test]
    fn an_interpreted_instruction_ends_as_on_the_cpu(
        code in instruction(),
        values in proptest::array::uniform6(value()),
        flags in any::<u64>(),
        overlap in 0..24u64,
        content in proptest::collection::vec(any::<u8>(), MEMORY),
    ) {
        let decoded = Decoder::with_ip(64, &code, 0x10_0000, DecoderOptions::NONE).decode();
        if decoded.is_invalid() || decoded.len() != code.len() {
            return Ok(());
        }
        let string = decoded.is_string_instruction();
        let [rax, mut rcx, rdx, rbx, r8, r9] = values;
        if string {
            rcx &= 7;
        }
        // A bit's number may reach beyond the operand, but not beyond the memory.
        let bits = matches!(decoded.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
        let near = |value: u64| if bits { value % 512 } else { value };
        let [rax, rcx, rdx, rbx, r8, r9] = [rax, rcx, rdx, rbx, r8, r9].map(near);
        let flags = flags & rflags::STATUS | 2;

        let mut machine = Mock::new();
        machine.write(DATA, &content);
        let middle = 96;
        let before = kvm_regs {
            rax, rcx, rdx, rbx, r8, r9,
            rsi: DATA + middle + overlap,
            rdi: DATA + middle,
            rflags: flags,
            ..regs()
        };
        if bits && decoded.op_count() > 1 && decoded.op0_kind() == iced_x86::OpKind::Memory {
            let index = decoded.op1_register().full_register();
            if matches!(index, iced_x86::Register::RSI | iced_x86::Register::RDI) {
                return Ok(());
            }
        }
        let mut cpu = Cpu::new(before, sregs(), &mut machine);
        let flow = cpu.one(&decoded, &mut Privileges::default(), &mut AssistCounts::default());
        let after = cpu.regs;
        if !matches!(flow, Ok(Flow::Next)) {
            return Ok(());
        }

        let mut memory = content.clone();
        let base = memory.as_mut_ptr() as u64;
        let place = |address: u64| address.wrapping_sub(DATA).wrapping_add(base);
        let mut state = [rax, rcx, rdx, rbx, place(before.rsi), place(before.rdi), r8, r9, flags];
        Native::new().run(&code, &mut state);

        // Pointers may have moved, been copied or been calculated with; those cases say nothing here.
        let pointers = state[4].wrapping_sub(place(after.rsi)) | state[5].wrapping_sub(place(after.rdi));
        let uses_pointers = [decoded.op0_register(), decoded.op1_register()]
            .iter()
            .any(|register| matches!(register.full_register(), iced_x86::Register::RSI | iced_x86::Register::RDI));
        if uses_pointers || decoded.mnemonic() == Mnemonic::Lea {
            return Ok(());
        }
        prop_assert_eq!(pointers, 0, "RSI or RDI of {:02x?}", code);
        prop_assert_eq!(
            [after.rax, after.rcx, after.rdx, after.rbx, after.r8, after.r9],
            [state[0], state[1], state[2], state[3], state[6], state[7]],
            "registers of {:02x?}", code
        );
        let count = match decoded.op_count() {
            3 => decoded.try_immediate(2).unwrap_or(rcx),
            2 => decoded.try_immediate(1).unwrap_or(rcx),
            _ => 1,
        };
        let size = Cpu::operand_size(&decoded, 0);
        let count = count & if size == 8 { 63 } else { 31 };
        let mask = rflags::STATUS & !undefined(&decoded, count);
        prop_assert_eq!(after.rflags & mask, state[8] & mask, "flags of {:02x?}, {:?}", code, decoded.mnemonic());
        prop_assert!(machine.bytes(DATA, MEMORY) == memory, "memory of {code:02x?}");
    }
}
