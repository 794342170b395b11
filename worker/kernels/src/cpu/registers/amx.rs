//! The tile registers of Intel's AMX, from Sapphire Rapids on.
//!
//! The compiler has no stable names for these instructions, and touches none of these registers by itself: what they hold lives from
//! one piece of assembly to the next. Their size makes the system ask programs to ask for them.

use std::{
    arch::{asm, x86_64::__cpuid_count},
    sync::OnceLock,
};

use crate::cpu::registers::{ROW_BYTES, ROWS, TileRegisters};

/// Whether this CPU multiplies bytes and bf16 in tile registers.
pub(crate) fn is_there() -> bool {
    /// AMX-BF16, AMX-TILE and AMX-INT8 in EDX of leaf 7.
    const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| is_x86_feature_detected!("avx512f") && __cpuid_count(7, 0).edx & BITS == BITS)
}

/// Whether the system lets this process use them: asked once, and granted to all of its threads, those that already run included.
pub(crate) fn is_permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| is_there() && ask())
}

#[cfg(target_os = "linux")]
fn ask() -> bool {
    /// Both from Linux's `asm/prctl.h` and `asm/fpu/types.h`.
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILE_DATA: usize = 18;
    // SAFETY: asks for room in this process's saved states; no memory of ours is passed.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// The registers of this thread, configured; dropped, they are empty, so that the system has nothing of them to save.
pub(crate) struct Amx(());

/// What `ldtilecfg` reads: the palette of eight registers, then for each bytes of a row and rows.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileRegisters for Amx {
    unsafe fn with_rows(rows: usize) -> Self {
        assert!((1..=ROWS).contains(&rows), "a register has 1 to 16 rows");
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(ROW_BYTES as u16);
        config.rows[..6].fill(rows as u8);
        config.rows[6..8].fill(ROWS as u8);
        // SAFETY: reads the 64 bytes of `config`, which are valid; the caller promises the instruction.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly)) };
        Self(())
    }

    #[inline(always)]
    unsafe fn zero<const T: usize>(&mut self) {
        // SAFETY: touches a register that only assembly uses.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem)) };
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8) {
        // SAFETY: the caller promises the rows at `from`.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from, stride = in(reg) ROW_BYTES,
                options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut u8) {
        // SAFETY: the caller promises the rows at `to`.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) ROW_BYTES,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes<const C: usize, const A: usize, const W: usize>(&mut self) {
        // SAFETY: touches registers that only assembly uses.
        unsafe {
            asm!("tdpbssd tmm{c}, tmm{a}, tmm{w}", c = const C, a = const A, w = const W,
                options(nostack, preserves_flags, nomem));
        }
    }

    #[inline(always)]
    unsafe fn dot_pairs<const C: usize, const A: usize, const W: usize>(&mut self) {
        // SAFETY: touches registers that only assembly uses.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{w}", c = const C, a = const A, w = const W,
                options(nostack, preserves_flags, nomem));
        }
    }
}

impl Drop for Amx {
    fn drop(&mut self) {
        // SAFETY: whoever made the value had the instruction.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}
