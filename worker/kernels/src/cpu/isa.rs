//! Instruction sets that kernels have versions for, which of them this CPU has, and which it is best at.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::cpu::registers::amx;

/// Instruction sets with a version of every kernel, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; the compiler vectorises it for the baseline of the target. The truth in tests.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// The same with products of bytes: Alder Lake, Zen 5 and later, also where AVX-512 is missing.
    AvxVnni,
    /// AVX-512 F, BW, VL and VNNI: Ice Lake, Zen 4 and later.
    Avx512,
    /// The same with products of bf16 pairs: Sapphire Rapids, Zen 4 and later.
    Avx512Bf16,
    /// AVX-512 with products of bytes and of bf16 pairs in tile registers: Sapphire Rapids and later.
    Amx,
}

/// A generation of CPUs that are slower with one of its levels than with the one below it.
#[cfg(target_arch = "x86_64")]
struct PassedOver {
    level: Isa,
    vendor: &'static str,
    /// Whether a CPU of this vendor is of the generation, by what came with it: hypervisors make up model numbers.
    generation: fn() -> bool,
}

/// Levels that are not taken where `cargo run --release -p nanoinfer-benches --bin levels` showed that the one below is faster. CPUs
/// that nobody measured run the best of theirs.
#[cfg(target_arch = "x86_64")]
const PASSED_OVER: [PassedOver; 1] = [
    // Granite Rapids, and as `vdpbf16ps` is no faster there, from Sapphire Rapids on: pairs of bf16 take 1.3 times as long as
    // their two multiply-adds from 32 rows on, and are not faster with one. It matters where the system refuses tile registers.
    PassedOver {
        level: Isa::Avx512Bf16,
        vendor: "GenuineIntel",
        generation: || is_x86_feature_detected!("avx512fp16"),
    },
];

impl Isa {
    /// The one that this CPU is best at.
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let mut levels = Self::available().into_iter().rev().filter(|isa| !isa.is_passed_over());
            levels.next().expect("portable is always there")
        })
    }

    /// Levels above the best one that this CPU has, and is slower with.
    pub fn passed_over() -> Vec<Self> {
        Self::available().into_iter().filter(|&isa| isa > Self::detect()).collect()
    }

    /// Whether this CPU has a level that the system keeps from this process.
    pub fn refused() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return (amx::is_there() && !amx::is_permitted()).then_some(Self::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        return None;
    }

    /// All that this CPU runs, in ascending order.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Every level, in ascending order.
    pub const ALL: [Self; 6] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The level of this name, whether or not this CPU has it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether bytes of weights lie in memory with 128 added, as its products want them: unsigned.
    pub(crate) fn biases_bytes(self) -> bool {
        matches!(self, Self::AvxVnni | Self::Avx512 | Self::Avx512Bf16)
    }

    fn is_passed_over(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return PASSED_OVER.iter().any(|row| row.level == self && row.vendor == vendor() && (row.generation)());
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    pub(crate) fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Portable => true,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            Self::Amx => Self::Avx512.is_available() && amx::is_permitted(),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }
}

/// The twelve letters by which a CPU names its maker.
#[cfg(target_arch = "x86_64")]
fn vendor() -> String {
    let leaf = std::arch::x86_64::__cpuid(0);
    String::from_utf8_lossy([leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened()).into_owned()
}
