//! The smallest machine that KVM can run: four pages of memory, one processor in long mode, a loop that counts and halts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Instant;

use super::{Failure, Why};

pub const ROUNDS: u64 = 20_000;

const DEVICE: &str = "/dev/kvm";
const API_VERSION: i32 = 12;

const KVM_GET_API_VERSION: u64 = 0xae00;
const KVM_CREATE_VM: u64 = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const KVM_CREATE_VCPU: u64 = 0xae41;
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_SET_SREGS: u64 = 0x4138_ae84;

/// Where `struct kvm_run` tells why the processor stopped.
const EXIT_REASON_AT: usize = 8;
const KVM_EXIT_HLT: u32 = 5;

const PAGE: usize = 4096;
const MEMORY: usize = 4 * PAGE;
/// Page tables of three levels, which map the first 2 MiB to themselves; the code lies in the first page.
const TABLES: [usize; 3] = [PAGE, 2 * PAGE, 3 * PAGE];
/// inc rax; dec rcx; jnz to the first; hlt
const CODE: [u8; 9] = [0x48, 0xff, 0xc0, 0x48, 0xff, 0xc9, 0x75, 0xf8, 0xf4];

#[repr(C)]
#[derive(Default)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    bytes: u64,
    address: u64,
}

#[repr(C)]
#[derive(Default)]
struct Registers {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rsp: u64,
    rbp: u64,
    r8_to_r15: [u64; 8],
    rip: u64,
    rflags: u64,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Table {
    base: u64,
    limit: u16,
    padding: [u16; 3],
}

#[repr(C)]
#[derive(Default)]
struct SystemRegisters {
    cs: Segment,
    /// ds, es, fs, gs, ss.
    data: [Segment; 5],
    tr: Segment,
    ldt: Segment,
    gdt: Table,
    idt: Table,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

/// On a busy host one run may wait for the processor longer than an emulator computes.
const RUNS: u32 = 3;

/// The least that the loop takes, in microseconds, after one round that touches everything it needs.
pub fn time_loop() -> Result<u64, Failure> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Failure { why: Why::Processor, detail: "virtual machines are of x86-64 processors only".to_owned() });
    }
    let kvm = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| not_open(&error))?;
    let machine = Machine::create(&kvm)?;
    machine.run(1)?;
    let mut least = u64::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        machine.run(ROUNDS)?;
        least = least.min(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(least)
}

fn not_open(error: &io::Error) -> Failure {
    let why = match error.kind() {
        io::ErrorKind::NotFound => Why::Absent,
        io::ErrorKind::PermissionDenied => Why::Denied,
        _ => match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Why::Absent,
            _ => Why::Failed,
        },
    };
    Failure { why, detail: format!("{DEVICE}: {error}") }
}

struct Machine {
    memory: Mapping,
    state: Mapping,
    processor: File,
    /// Ends after its processor.
    _machine: File,
}

impl Machine {
    fn create(kvm: &File) -> Result<Self, Failure> {
        let version = control(kvm, KVM_GET_API_VERSION, 0, "ask for the version of KVM")?;
        if version != API_VERSION {
            return Err(failed(format!("KVM has version {version}, not {API_VERSION}")));
        }
        let machine = owned(control(kvm, KVM_CREATE_VM, 0, "make a machine")?);
        let memory = Mapping::anonymous(MEMORY)?;
        let region = MemoryRegion { bytes: MEMORY as u64, address: memory.address as u64, ..Default::default() };
        control(&machine, KVM_SET_USER_MEMORY_REGION, &raw const region as u64, "give a machine memory")?;
        let processor = owned(control(&machine, KVM_CREATE_VCPU, 0, "make a processor")?);
        let state_bytes = control(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "ask for the size of a processor's state")?;
        let state = Mapping::shared(&processor, usize::try_from(state_bytes).unwrap_or(0))?;
        let made = Self { memory, state, processor, _machine: machine };
        made.fill();
        made.enter_long_mode()?;
        Ok(made)
    }

    fn fill(&self) {
        const PRESENT_WRITABLE: u64 = 0b11;
        const LARGE: u64 = 1 << 7;
        self.memory.write(0, &CODE);
        self.memory.write(TABLES[0], &(TABLES[1] as u64 | PRESENT_WRITABLE).to_le_bytes());
        self.memory.write(TABLES[1], &(TABLES[2] as u64 | PRESENT_WRITABLE).to_le_bytes());
        self.memory.write(TABLES[2], &(PRESENT_WRITABLE | LARGE).to_le_bytes());
    }

    fn enter_long_mode(&self) -> Result<(), Failure> {
        const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
        const CR4_PAE: u64 = 1 << 5;
        const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
        let mut registers = SystemRegisters::default();
        control(&self.processor, KVM_GET_SREGS, &raw mut registers as u64, "read a processor's registers")?;
        let segment = Segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
        registers.cs = Segment { selector: 8, kind: 11, l: 1, ..segment };
        registers.data = [Segment { selector: 16, kind: 3, db: 1, ..segment }; 5];
        registers.cr0 = CR0_PE_MP_ET_NE_WP_PG;
        registers.cr3 = TABLES[0] as u64;
        registers.cr4 = CR4_PAE;
        registers.efer = EFER_LME_LMA;
        control(&self.processor, KVM_SET_SREGS, &raw const registers as u64, "bring a processor into long mode").map(drop)
    }

    /// From the first instruction to the halt. That the loop has counted right shows that something really ran.
    fn run(&self, rounds: u64) -> Result<(), Failure> {
        const RFLAGS_FIXED: u64 = 2;
        let mut registers = Registers { rcx: rounds, rflags: RFLAGS_FIXED, ..Default::default() };
        control(&self.processor, KVM_SET_REGS, &raw const registers as u64, "set a processor's registers")?;
        control(&self.processor, KVM_RUN, 0, "run a processor")?;
        let reason = self.state.read_u32(EXIT_REASON_AT);
        control(&self.processor, KVM_GET_REGS, &raw mut registers as u64, "read a processor's registers")?;
        if reason != KVM_EXIT_HLT || registers.rax != rounds {
            return Err(failed(format!("a loop of {rounds} rounds stopped after {}, exit reason {reason}", registers.rax)));
        }
        Ok(())
    }
}

fn control(file: &File, request: u64, argument: u64, doing: &str) -> Result<i32, Failure> {
    // SAFETY: each caller's argument is what its request takes: nothing, or the address of a structure of the size that the number of the
    // request contains, which outlives the call.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if answer < 0 { Err(failed(format!("{doing}: {}", io::Error::last_os_error()))) } else { Ok(answer) }
}

fn owned(descriptor: i32) -> File {
    // SAFETY: KVM has just made it for us.
    unsafe { File::from_raw_fd(descriptor) }
}

fn failed(detail: String) -> Failure {
    Failure { why: Why::Failed, detail }
}

struct Mapping {
    address: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    fn anonymous(bytes: usize) -> Result<Self, Failure> {
        Self::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn shared(file: &File, bytes: usize) -> Result<Self, Failure> {
        if bytes < PAGE {
            return Err(failed(format!("a processor's state has {bytes} bytes")));
        }
        Self::map(bytes, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn map(bytes: usize, flags: i32, descriptor: i32) -> Result<Self, Failure> {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, descriptor, 0) };
        if address == libc::MAP_FAILED {
            return Err(failed(format!("map {bytes} bytes: {}", io::Error::last_os_error())));
        }
        Ok(Self { address, bytes })
    }

    fn write(&self, at: usize, content: &[u8]) {
        assert!(at + content.len() <= self.bytes);
        // SAFETY: inside the mapping, as checked; nobody else uses it before the processor runs.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), self.address.cast::<u8>().add(at), content.len()) };
    }

    fn read_u32(&self, at: usize) -> u32 {
        assert!(at + 4 <= self.bytes && at.is_multiple_of(4));
        // SAFETY: inside the mapping and aligned, as checked; volatile, since the kernel writes it.
        unsafe { self.address.cast::<u8>().add(at).cast::<u32>().read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us, and never handed out.
        unsafe { libc::munmap(self.address, self.bytes) };
    }
}
