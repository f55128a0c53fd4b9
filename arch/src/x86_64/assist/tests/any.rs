//! Whatever the guest's bytes and registers are: no panic, and no write where the page tables allow none.

use proptest::prelude::*;

use super::super::execute::execute;
use super::super::machine::{Cpu, Machine};
use super::super::mock::{DATA, Mock, regs, sregs, user_sregs};

/// Starts of instructions that the assist knows, so that most cases get past the decoder.
const STARTS: &[&[u8]] = &[
    &[0x0f, 0xae],
    &[0x48, 0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x48, 0x0f, 0xc7],
    &[0xf0, 0x48, 0x0f, 0xc7],
    &[0xf3, 0x0f, 0xae],
    &[0xf3, 0x48, 0x0f, 0xae],
    &[0xf3, 0x0f, 0xb8],
    &[0xf3, 0x0f, 0xbc],
    &[0xf3, 0x48, 0x0f, 0xbd],
    &[0xf2, 0x0f, 0x38, 0xf1],
    &[0x66, 0x0f, 0x38, 0xf6],
    &[0x66, 0x0f, 0x38, 0x82],
    &[0x0f, 0x38, 0xf0],
    &[0x0f, 0x38, 0xf1],
    &[0x0f, 0x01],
    &[0x0f, 0x00],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x18],
    &[0x0f, 0x1f],
    &[0xc4, 0xe2],
    &[0xc4, 0xe3],
    &[0xd9],
    &[0xdb],
    &[0xdf],
    &[0xdd],
];

fn code() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![Just(&[][..]), proptest::sample::select(STARTS)];
    (start, proptest::collection::vec(any::<u8>(), 0..15)).prop_map(|(start, rest)| {
        let mut code = start.to_vec();
        code.extend(rest);
        code.truncate(15);
        code
    })
}

/// Values that make addresses inside the mock's memory, at its edges, and anywhere.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..0x1000).prop_map(|offset| DATA + (offset & !15)),
        1 => 0u64..0x40_1000,
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_instruction_panics_or_writes_where_it_must_not(
        code in code(),
        values in proptest::array::uniform8(value()),
        flags in any::<u64>(),
        user in any::<bool>(),
        cr0 in any::<u8>(),
        cr4 in any::<u32>(),
        mode in 0..8u8,
        state in proptest::collection::vec(any::<u8>(), 64),
    ) {
        let mut machine = Mock::new();
        // Only the page at `DATA` may be written, and user space may use it.
        for page in 0..1024 {
            let linear = page << 12;
            machine.set_entry(linear, machine.entry(linear) & !2);
        }
        machine.set_entry(DATA, DATA | 7);
        machine.write(DATA + 480, &state);
        let mut registers = regs();
        [
            registers.rax, registers.rcx, registers.rdx, registers.rbx, registers.rsi, registers.rdi, registers.rbp,
            registers.r8,
        ] = values;
        registers.rflags = flags;
        let mut system = if user { user_sregs() } else { sregs() };
        // MP, EM and TS at will; protection, paging and write protection stay.
        system.cr0 |= u64::from(cr0 & 0xe);
        system.cr4 |= u64::from(cr4) & !(1 << 12);
        system.gdt.base = values[7];
        system.gdt.limit = 0xffff;
        if mode == 0 {
            system.cs.l = 0;
        }
        system.cs.db = mode & 1;

        machine.written.borrow_mut().clear();
        let mut cpu = Cpu::new(registers, system, &mut machine);
        let (_, result) = execute(&mut cpu, &code, None);
        if result.is_err() {
            prop_assert_eq!((cpu.regs, cpu.sregs), (registers, system));
        }
        let tables = 1..6;
        let stray = machine.written.borrow().iter().find(|page| **page != DATA >> 12 && !tables.contains(*page)).copied();
        prop_assert_eq!(stray, None, "a page that {:02x?} must not write", code);
    }
}
