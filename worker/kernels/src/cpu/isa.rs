//! Instruction sets that kernels have versions for, and which of them this CPU has.

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
}

impl Isa {
    /// The best that this CPU runs.
    pub fn detect() -> Self {
        Self::available().pop().expect("portable is always there")
    }

    /// All that this CPU runs, in ascending order.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Every level, in ascending order.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Avx512Bf16];

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
        }
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
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }
}
