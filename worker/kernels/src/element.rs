//! What numbers are held as.

/// Element type of weights and with it the arithmetic of products with them, or of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// The upper half of one, rounded to nearest even; what is multiplied with such weights is rounded likewise, sums are f32.
    Bf16,
    /// IEEE half precision, on GPUs only.
    F16,
    /// −127..=127, on CPUs only. Of weights with a scale for each unit of K and column; what is multiplied with them likewise, with a
    /// scale for each row and unit, and sums are exact within a unit, f32 across units. Of a KV cache with a scale for each key and each
    /// value of a head.
    Int8,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Int8 => 1,
        }
    }
}
