//! Any instruction for the assist, on a machine of 64 KiB whose registers, page tables and memory the fuzzer fills.

use std::cell::RefCell;

use berth_arch::x86_64::assist::AssistError;
use berth_arch::x86_64::assist::execute::execute;
use berth_arch::x86_64::assist::machine::{Cpu, Machine, control};
use berth_arch::x86_64::assist::xsave::{Component, Layout};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

const PAGES: u64 = 16;
const SIZE: usize = (PAGES << 12) as usize;
/// Top of the page tables; one table per level, a page each.
const TABLES: u64 = 0x1000;
/// The components that the machine has: x87, SSE, AVX and two more.
const XCR0: u64 = 0x227;

struct Vm {
    memory: RefCell<Vec<u8>>,
    state: Vec<u8>,
    layout: Layout,
    xcr0: u64,
}

impl Vm {
    fn new() -> Self {
        let component = |index, offset, size, aligned| Component {
            index,
            offset,
            size,
            aligned,
        };
        let mut state = vec![0; 4096];
        state[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        state[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        state[28..32].copy_from_slice(&0x2_ffff_u32.to_le_bytes());
        Self {
            memory: RefCell::new(vec![0; SIZE]),
            state,
            layout: Layout::new(vec![
                component(2, 576, 256, false),
                component(5, 832, 64, true),
                component(9, 896, 8, false),
            ]),
            xcr0: XCR0,
        }
    }

    /// Where `len` bytes at `address` lie, if that is RAM.
    fn range(address: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(address).ok()?;
        let end = start.checked_add(len)?;
        (end <= SIZE).then_some(start..end)
    }
}

impl Machine for Vm {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(range) = Self::range(address, into.len()) else {
            return false;
        };
        into.copy_from_slice(&self.memory.borrow()[range]);
        true
    }

    fn write(&self, address: u64, from: &[u8]) -> bool {
        let Some(range) = Self::range(address, from.len()) else {
            return false;
        };
        self.memory.borrow_mut()[range].copy_from_slice(from);
        true
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Option<bool> {
        assert!(address.is_multiple_of(8), "the trait asks for an aligned word");
        let mut word = [0; 8];
        self.read(address, &mut word).then(|| {
            let same = u64::from_le_bytes(word) == current;
            if same {
                self.write(address, &new.to_le_bytes());
            }
            same
        })
    }

    fn compare_exchange16(&self, address: u64, current: u128, new: u128) -> Option<u128> {
        assert!(address.is_multiple_of(16), "the trait asks for an aligned word");
        let mut word = [0; 16];
        self.read(address, &mut word).then(|| {
            let found = u128::from_le_bytes(word);
            if found == current {
                self.write(address, &new.to_le_bytes());
            }
            found
        })
    }

    fn extended_state(&mut self) -> Result<Vec<u8>, AssistError> {
        Ok(self.state.clone())
    }

    fn set_extended_state(&mut self, image: &[u8]) -> Result<(), AssistError> {
        // KVM refuses such images, and the guest would stop.
        let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!(word(512) & !XCR0, 0, "components that the machine does not have");
        assert!(
            image[520..576].iter().all(|byte| *byte == 0),
            "reserved header bytes"
        );
        assert_eq!(word(24) as u32 & !0x2_ffff, 0, "reserved bits of MXCSR");
        self.state = image.to_vec();
        Ok(())
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn xcr0(&mut self) -> Result<u64, AssistError> {
        Ok(self.xcr0)
    }

    fn set_xcr0(&mut self, value: u64) -> Result<bool, AssistError> {
        let allowed = value & !XCR0 == 0 && value & 1 == 1;
        if allowed {
            self.xcr0 = value;
        }
        Ok(allowed)
    }

    fn msr(&mut self, index: u32) -> Result<u64, AssistError> {
        Ok(index.into())
    }

    fn set_msr(&mut self, _: u32, _: u64) -> Result<(), AssistError> {
        Ok(())
    }

    fn flush_translations(&mut self, _: &kvm_sregs) -> Result<(), AssistError> {
        Ok(())
    }

    fn random(&mut self) -> Option<u64> {
        Some(4)
    }
}

/// The fuzzer's bytes; past their end there are zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        bytes[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        bytes
    }

    /// A register: mostly an address in RAM, at an edge of a page, or anything.
    fn register(&mut self) -> u64 {
        let [kind, low, high] = self.bytes();
        let near = u64::from(u16::from_le_bytes([low, high]));
        match kind % 4 {
            0 => near,
            1 => near & !63,
            2 => (near & 0xf000).wrapping_sub(near & 63),
            _ => u64::from_le_bytes(self.bytes()),
        }
    }
}

/// Executes the instruction in `data` on a vCPU in the state that the rest of it describes.
pub(super) fn run(data: &[u8]) {
    let mut input = Input(data);
    let code: [u8; 15] = input.bytes();
    let [len, mode, cr0, page_bits] = input.bytes();
    let mut vm = Vm::new();
    for level in 0..3 {
        let entry = (TABLES + (level + 1) * 0x1000) | 7;
        vm.write(TABLES + level * 0x1000, &entry.to_le_bytes());
    }
    for page in 0..PAGES {
        // Each page present or not, writable or not, for user space or not.
        let bits = if input.bytes::<1>()[0] < 200 {
            7
        } else {
            u64::from(page_bits & 7)
        };
        vm.write(TABLES + 0x3000 + page * 8, &(page << 12 | bits).to_le_bytes());
    }
    let names: [u64; 16] = std::array::from_fn(|_| input.register());
    let [
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        rsp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = names;
    let (rip, rflags) = (input.register(), input.register() | 2);
    let regs = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    };
    let user = mode & 1 != 0;
    let mut sregs = kvm_sregs {
        cr0: 0x8000_0031 | u64::from(cr0 & 0xe) | u64::from(cr0 >> 7) << 16,
        cr3: TABLES,
        cr4: u64::from(u32::from_le_bytes(input.bytes())) & !control::CR4_LA57 | 1 << 5,
        efer: control::EFER_LMA | 1 << 8 | u64::from(mode >> 1 & 1) | u64::from(mode >> 2 & 1) << 11,
        cs: kvm_segment {
            selector: if user { 0x33 } else { 0x10 },
            dpl: if user { 3 } else { 0 },
            l: u8::from(mode >> 3 & 3 != 0),
            db: mode >> 5 & 1,
            ..Default::default()
        },
        ..Default::default()
    };
    sregs.fs.base = input.register();
    sregs.gs.base = input.register();
    sregs.gdt.base = input.register();
    sregs.gdt.limit = u16::from_le_bytes(input.bytes());
    // Memory from 0x5000 on: XSAVE areas, descriptors, operands.
    let rest = &input.0[..input.0.len().min(SIZE - 0x5000)];
    vm.write(0x5000, rest);

    let before = (regs, sregs);
    let mut cpu = Cpu::new(regs, sregs, &mut vm);
    let (_, result) = execute(&mut cpu, &code[..=usize::from(len % 15)], None);
    if result.is_err() {
        assert_eq!((cpu.regs, cpu.sregs), before, "a fault changes no register");
    }
}

/// One instruction of each group that the assist knows.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let instructions: [&[u8]; 16] = [
        &[0xcc],                               // int3
        &[0x9b],                               // fwait
        &[0xdb, 0xe2],                         // fnclex
        &[0x0f, 0xae, 0x10],                   // ldmxcsr
        &[0x0f, 0xae, 0x18],                   // stmxcsr
        &[0x48, 0x0f, 0xc7, 0x27],             // xsavec64
        &[0x48, 0x0f, 0xae, 0x27],             // xsave64
        &[0x48, 0x0f, 0xae, 0x37],             // xsaveopt64
        &[0x48, 0x0f, 0xc7, 0x2f],             // xsaves64
        &[0x48, 0x0f, 0xae, 0x2f],             // xrstor64
        &[0x48, 0x0f, 0xc7, 0x1f],             // xrstors64
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0f],       // lock cmpxchg16b
        &[0xf3, 0x48, 0x0f, 0xb8, 0xc1],       // popcnt
        &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1], // crc32
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0],       // wrfsbase
        &[0x0f, 0x01, 0xca],                   // clac
    ];
    let mut seeds = Vec::new();
    for code in instructions {
        let mut seed = code.to_vec();
        seed.resize(15, 0x90);
        seed.extend([code.len() as u8 - 1, 8, 2, 7]);
        seed.resize(seed.len() + PAGES as usize, 0);
        for register in 0..18_u16 {
            seed.push(1);
            seed.extend((0x6000 + register * 64).to_le_bytes());
        }
        seed.extend([0x20, 0x06, 0x07, 0]);
        seed.resize(1024, 0);
        seeds.push(seed);
    }
    seeds
}
