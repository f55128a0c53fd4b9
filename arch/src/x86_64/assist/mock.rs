//! A vCPU without KVM, for tests: some RAM, an extended state, and page tables on request.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::AssistError;
use super::execute::{Done, execute};
use super::machine::{Cpu, Machine, Trap, control};
use super::xsave::{Component, Layout};

/// Where tests put their code and their data, in linear memory; mapped one to one.
pub(super) const CODE: u64 = 0x10_0000;
pub(super) const DATA: u64 = 0x20_0000;
/// A page that nothing is mapped at, right after a mapped one.
pub(super) const HOLE: u64 = 0x30_1000;
/// A page that may only be read, right after one that may be written.
pub(super) const READ_ONLY: u64 = 0x31_1000;
/// A user page.
pub(super) const USER: u64 = 0x32_0000;
/// Linear page that lies elsewhere in physical memory than its neighbour.
pub(super) const SPLIT: u64 = 0x33_1000;
const SPLIT_PHYSICAL: u64 = 0x3f_0000;

const SIZE: usize = 4 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;

/// The rest of the machine.
pub(super) struct Mock {
    memory: RefCell<Vec<u8>>,
    /// Numbers of the physical pages that were written.
    pub(super) written: RefCell<BTreeSet<u64>>,
    pub(super) state: Vec<u8>,
    layout: Layout,
    pub(super) xcr0: u64,
    pub(super) msrs: BTreeMap<u32, u64>,
    pub(super) flushes: usize,
    pub(super) random: Option<u64>,
}

impl Mock {
    /// A machine with four levels of page tables for its first 4 MiB.
    pub(super) fn new() -> Self {
        let layout = Layout::new(vec![
            Component {
                index: 2,
                offset: 576,
                size: 256,
                aligned: false,
            },
            Component {
                index: 5,
                offset: 832,
                size: 64,
                aligned: false,
            },
            // Starts aligned although component 9 of 8 bytes lies before it in compacted areas.
            Component {
                index: 9,
                offset: 896,
                size: 8,
                aligned: false,
            },
            Component {
                index: 10,
                offset: 960,
                size: 64,
                aligned: true,
            },
        ]);
        let mut state = vec![0; 4096];
        state[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        state[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        state[28..32].copy_from_slice(&0x2_ffffu32.to_le_bytes());
        let mock = Self {
            memory: RefCell::new(vec![0; SIZE]),
            written: RefCell::default(),
            state,
            layout,
            xcr0: 0x627,
            msrs: BTreeMap::from([(0x10, 0x1_2345_6789), (0xc000_0103, 7)]),
            flushes: 0,
            random: Some(0x0123_4567_89ab_cdef),
        };
        mock.put(PML4, PDPT | 7);
        mock.put(PDPT, PD | 7);
        mock.put(PD, PT | 7);
        mock.put(PD + 8, (PT + 0x1000) | 7);
        for page in 0..1024 {
            let entry = match page << 12 {
                HOLE => 0,
                READ_ONLY => page << 12 | 1,
                USER => page << 12 | 7,
                SPLIT => SPLIT_PHYSICAL | 3,
                address => address | 3,
            };
            mock.put(PT + page * 8, entry);
        }
        mock
    }

    /// Sets a word of physical memory.
    pub(super) fn put(&self, address: u64, value: u64) {
        assert!(self.write(address, &value.to_le_bytes()));
    }

    /// A word of physical memory.
    pub(super) fn word(&self, address: u64) -> u64 {
        let mut raw = [0; 8];
        assert!(self.read(address, &mut raw));
        u64::from_le_bytes(raw)
    }

    /// Bytes of physical memory.
    pub(super) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        assert!(self.read(address, &mut bytes));
        bytes
    }

    /// The leaf entry of a page.
    pub(super) fn entry(&self, linear: u64) -> u64 {
        self.word(PT + (linear >> 12) * 8)
    }

    /// Changes the leaf entry of a page.
    pub(super) fn set_entry(&self, linear: u64, entry: u64) {
        self.put(PT + (linear >> 12) * 8, entry);
    }
}

impl Machine for Mock {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let memory = self.memory.borrow();
        let Some(end) = address.checked_add(into.len() as u64) else {
            return false;
        };
        let Some(from) = memory.get(address as usize..end as usize) else {
            return false;
        };
        into.copy_from_slice(from);
        true
    }

    fn write(&self, address: u64, from: &[u8]) -> bool {
        let mut memory = self.memory.borrow_mut();
        let Some(end) = address.checked_add(from.len() as u64) else {
            return false;
        };
        let Some(to) = memory.get_mut(address as usize..end as usize) else {
            return false;
        };
        to.copy_from_slice(from);
        self.written.borrow_mut().extend(address >> 12..=(end - 1) >> 12);
        true
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Option<bool> {
        let mut raw = [0; 8];
        if !self.read(address, &mut raw) {
            return None;
        }
        let same = u64::from_le_bytes(raw) == current;
        if same {
            self.write(address, &new.to_le_bytes());
        }
        Some(same)
    }

    fn compare_exchange16(&self, address: u64, current: u128, new: u128) -> Option<u128> {
        assert!(address.is_multiple_of(16));
        let mut raw = [0; 16];
        if !self.read(address, &mut raw) {
            return None;
        }
        let found = u128::from_le_bytes(raw);
        if found == current {
            self.write(address, &new.to_le_bytes());
        }
        Some(found)
    }

    fn extended_state(&mut self) -> Result<Vec<u8>, AssistError> {
        Ok(self.state.clone())
    }

    fn set_extended_state(&mut self, image: &[u8]) -> Result<(), AssistError> {
        // What KVM_SET_XSAVE checks.
        let xstate_bv = u64::from_le_bytes(image[512..520].try_into().unwrap());
        assert_eq!(xstate_bv & !0x627, 0, "components that KVM does not have");
        assert_eq!(
            image[520..576],
            [0; 56],
            "KVM wants the rest of the header to be zero"
        );
        let mxcsr = u32::from_le_bytes(image[24..28].try_into().unwrap());
        assert_eq!(mxcsr & !0x2_ffff, 0, "reserved bits of MXCSR");
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
        let allowed = value & !0x627 == 0;
        if allowed {
            self.xcr0 = value;
        }
        Ok(allowed)
    }

    fn msr(&mut self, index: u32) -> Result<u64, AssistError> {
        self.msrs.get(&index).copied().ok_or(AssistError::Msr { index })
    }

    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), AssistError> {
        self.msrs.insert(index, value);
        Ok(())
    }

    fn flush_translations(&mut self, _: &kvm_sregs) -> Result<(), AssistError> {
        self.flushes += 1;
        Ok(())
    }

    fn random(&mut self) -> Option<u64> {
        self.random
    }
}

/// General registers with distinct values, at `CODE`, with a stack.
pub(super) fn regs() -> kvm_regs {
    kvm_regs {
        rax: 0xa,
        rbx: 0xb,
        rcx: 0xc,
        rdx: 0xd,
        rsi: 0x51,
        rdi: DATA,
        rsp: DATA + 0x8000,
        rip: CODE,
        rflags: 2,
        ..Default::default()
    }
}

/// System registers of ring 0 in long mode, with all that operating systems switch on.
pub(super) fn sregs() -> kvm_sregs {
    let code = kvm_segment {
        selector: 0x10,
        l: 1,
        s: 1,
        present: 1,
        type_: 11,
        ..Default::default()
    };
    kvm_sregs {
        cr0: 0x8001_0033,
        cr3: PML4,
        cr4: 1 << 5 | control::CR4_OSFXSR | control::CR4_OSXSAVE | control::CR4_FSGSBASE | control::CR4_PCIDE,
        efer: control::EFER_SCE | control::EFER_LMA | control::EFER_NXE | 1 << 8,
        cs: code,
        ..Default::default()
    }
}

/// The same in ring 3.
pub(super) fn user_sregs() -> kvm_sregs {
    let mut sregs = sregs();
    sregs.cs.selector = 0x33;
    sregs.cs.dpl = 3;
    sregs
}

/// Executes `bytes`, and returns how that ended with the registers after it.
#[expect(clippy::large_types_passed_by_value, reason = "tests read better so")]
pub(super) fn run_with(
    machine: &mut Mock,
    bytes: &[u8],
    regs: kvm_regs,
    sregs: kvm_sregs,
) -> (Result<Done, Trap>, kvm_regs, kvm_sregs) {
    let mut cpu = Cpu::new(regs, sregs, machine);
    let (_, result) = execute(&mut cpu, bytes, None);
    (result, cpu.regs, cpu.sregs)
}

/// Executes `bytes` in ring 0, which must end well, and returns the registers.
pub(super) fn run(machine: &mut Mock, bytes: &[u8], regs: kvm_regs) -> kvm_regs {
    let (result, after, _) = run_with(machine, bytes, regs, sregs());
    assert_eq!(result.unwrap(), Done::Next, "{bytes:02x?}");
    assert_eq!(after.rip, regs.rip + bytes.len() as u64, "{bytes:02x?}");
    after
}

/// Executes `bytes`, which must raise an exception and change no register, and returns the exception.
#[expect(clippy::large_types_passed_by_value, reason = "tests read better so")]
pub(super) fn fault(
    machine: &mut Mock,
    bytes: &[u8],
    regs: kvm_regs,
    sregs: kvm_sregs,
) -> super::machine::Exception {
    let (result, after, after_system) = run_with(machine, bytes, regs, sregs);
    assert_eq!((after, after_system), (regs, sregs), "{bytes:02x?}");
    match result {
        Err(Trap::Exception(exception)) => exception,
        other => panic!("{bytes:02x?}: {other:?}"),
    }
}
