//! The floor of the start-up benchmark: the least KVM program whose guest, one vCPU and 128 MiB, writes one byte and ends.
//!
//! No interrupt controller, no device, no threads, no options, no clean-up: the guest is eight bytes in real mode, and
//! what any monitor needs beyond this is what that monitor costs.

use std::fs::File;
use std::io::Write;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr;

use kvm_bindings::{
    KVM_EXIT_IO, KVMIO, kvm_regs, kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_4 as Io, kvm_sregs,
    kvm_userspace_memory_region,
};

const RAM: usize = 128 << 20;
const CODE_AT: u64 = 0x1000;
/// mov dx, 0x3f8; mov al, 'B'; out dx, al; out 0xf4, al
const CODE: [u8; 8] = [0xba, 0xf8, 0x03, 0xb0, b'B', 0xee, 0xe6, 0xf4];

const fn request(direction: u32, number: u32, size: usize) -> libc::c_ulong {
    (direction << 30 | (size as u32) << 16 | KVMIO << 8 | number) as libc::c_ulong
}

const KVM_CREATE_VM: libc::c_ulong = request(0, 0x01, 0);
const KVM_GET_VCPU_MMAP_SIZE: libc::c_ulong = request(0, 0x04, 0);
const KVM_CREATE_VCPU: libc::c_ulong = request(0, 0x41, 0);
const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = request(1, 0x46, size_of::<kvm_userspace_memory_region>());
const KVM_RUN: libc::c_ulong = request(0, 0x80, 0);
const KVM_SET_REGS: libc::c_ulong = request(1, 0x82, size_of::<kvm_regs>());
const KVM_GET_SREGS: libc::c_ulong = request(2, 0x83, size_of::<kvm_sregs>());
const KVM_SET_SREGS: libc::c_ulong = request(1, 0x84, size_of::<kvm_sregs>());

/// An ioctl whose argument is a number or the address of what it reads or writes; the program ends if it fails.
fn ioctl(fd: i32, request: libc::c_ulong, argument: usize) -> i32 {
    // SAFETY: each caller passes a number where the request takes one, and otherwise the address of a live value of
    // the type that the request's size was computed from.
    let result = unsafe { libc::ioctl(fd, request, argument) };
    assert!(
        result >= 0,
        "floor: ioctl {request:#x}: {}",
        std::io::Error::last_os_error()
    );
    result
}

fn map(len: usize, flags: i32, fd: i32) -> *mut u8 {
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            fd,
            0,
        )
    };
    assert!(
        address != libc::MAP_FAILED,
        "floor: mmap: {}",
        std::io::Error::last_os_error()
    );
    address.cast()
}

/// Reads a value of KVM's part of the vCPU's mapping.
fn read<T: Copy>(run: *const u8, offset: usize) -> T {
    // SAFETY: the callers' offsets are those of `kvm_run` or one that KVM put there, inside the mapping and aligned; it
    // is mapped for the whole program, and KVM writes it only inside KVM_RUN, which is not running.
    unsafe { ptr::read_volatile(run.wrapping_add(offset).cast()) }
}

fn main() {
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .unwrap_or_else(|error| panic!("floor: /dev/kvm: {error}"));
    let vm = ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0);

    let ram = map(
        RAM,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        -1,
    );
    let code = ram.wrapping_add(CODE_AT as usize);
    // SAFETY: the mapping is far longer than offset and code together, and nobody else has it yet.
    unsafe { ptr::copy_nonoverlapping(CODE.as_ptr(), code, CODE.len()) };
    let slot = kvm_userspace_memory_region {
        memory_size: RAM as u64,
        userspace_addr: ram as u64,
        ..Default::default()
    };
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &raw const slot as usize);

    let vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    let size = ioctl(kvm.as_raw_fd(), KVM_GET_VCPU_MMAP_SIZE, 0);
    let run = map(size as usize, libc::MAP_SHARED, vcpu);

    let mut sregs = kvm_sregs::default();
    ioctl(vcpu, KVM_GET_SREGS, &raw mut sregs as usize);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    ioctl(vcpu, KVM_SET_SREGS, &raw const sregs as usize);
    let regs = kvm_regs {
        rip: CODE_AT,
        rflags: 2,
        ..Default::default()
    };
    ioctl(vcpu, KVM_SET_REGS, &raw const regs as usize);

    let io = offset_of!(kvm_run, __bindgen_anon_1);
    loop {
        ioctl(vcpu, KVM_RUN, 0);
        let exit: u32 = read(run, offset_of!(kvm_run, exit_reason));
        assert!(exit == KVM_EXIT_IO, "floor: exit reason {exit}");
        let port: u16 = read(run, io + offset_of!(Io, port));
        if port == 0xf4 {
            break;
        }
        let data: u64 = read(run, io + offset_of!(Io, data_offset));
        // A reader that has gone is the reader's affair.
        let _ = std::io::stdout().write_all(&[read(run, data as usize)]);
    }
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process; nothing needs to run after it.
    unsafe { libc::_exit(0) }
}
