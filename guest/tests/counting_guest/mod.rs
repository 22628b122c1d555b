//! A guest of eight instructions: it counts, and writes the number into one page after the other, and zeroes into others.

/// Where in its memory the number stands.
pub const COUNTER: u64 = 0x20_0000;
const LOADED_AT: u32 = 0x10_0000;
const NOTE_ENTRY: u32 = 18;

/// Started in 32-bit protected mode without paging, as the PVH boot protocol says.
const PROGRAM: [u8; 38] = [
    0xbb, 0x00, 0x00, 0x20, 0x00, // mov ebx, COUNTER
    0xff, 0x03, // next: inc dword [ebx]
    0x8b, 0x03, // mov eax, [ebx]
    0x89, 0xc1, // mov ecx, eax
    0x81, 0xe1, 0xff, 0x00, 0x00, 0x00, // and ecx, 255
    0xc1, 0xe1, 0x0c, // shl ecx, 12
    0x89, 0x81, 0x00, 0x00, 0x40, 0x00, // mov [ecx + 0x400000], eax
    0xc7, 0x81, 0x00, 0x00, 0x60, 0x00, 0x00, 0x00, 0x00, 0x00, // mov dword [ecx + 0x600000], 0
    0xeb, 0xdf, // jmp next
];

/// An ELF file of one segment, with the note that names where to start.
pub fn elf() -> Vec<u8> {
    let (headers, note) = (64 + 2 * 56_u64, 20_u64);
    let program_at = headers + note;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Executable, x86-64, version 1.
    file.extend([2_u16, 62].iter().flat_map(|value| value.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([u64::from(LOADED_AT), 64, 0].iter().flat_map(|value| value.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 2, 0, 0, 0].iter().flat_map(|value| value.to_le_bytes()));
    let mut segment = |kind: u32, flags: u32, offset: u64, address: u64, length: u64| {
        file.extend([kind, flags].iter().flat_map(|value| value.to_le_bytes()));
        file.extend([offset, address, address, length, length, 4].iter().flat_map(|value| value.to_le_bytes()));
    };
    segment(1, 7, program_at, u64::from(LOADED_AT), PROGRAM.len() as u64);
    segment(4, 4, headers, 0, note);
    file.extend([4_u32, 4, NOTE_ENTRY].iter().flat_map(|value| value.to_le_bytes()));
    file.extend(b"Xen\0");
    file.extend(LOADED_AT.to_le_bytes());
    file.extend(PROGRAM);
    file
}
