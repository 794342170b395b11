//! How a kernel gets a version for each instruction set.

/// Makes `name(isa, …)` out of a generic `#[inline(always)] unsafe fn body<V: Lanes, …>(…)`: the body is compiled once for
/// each instruction set.
///
/// # Safety
/// Callers of the made function promise that the CPU has `isa`, besides what the body asks.
macro_rules! versions {
    (unsafe fn $name:ident $(<$(type $t:ident: $bound:ident,)? $(const $c:ident: usize),*>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        unsafe fn $name $(<$($t: $bound,)? $(const $c: usize),*>)? (isa: $crate::cpu::isa::Isa, $($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2 $(<$($t: $bound,)? $(const $c: usize),*>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::cpu::lanes::avx2::Avx2, $($($t,)? $($c),*)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avxvnni")]
            unsafe fn avx_vnni $(<$($t: $bound,)? $(const $c: usize),*>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::cpu::lanes::avx2::AvxVnni, $($($t,)? $($c),*)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn avx512 $(<$($t: $bound,)? $(const $c: usize),*>)? ($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::cpu::lanes::avx512::Avx512, $($($t,)? $($c),*)?>($($arg),*) }
            }
            // SAFETY: the caller promises that the CPU has `isa`; but for the portable, those of other CPUs are never there.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx2 => avx2 $(::<$($t,)? $($c),*>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::AvxVnni => avx_vnni $(::<$($t,)? $($c),*>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx512 | $crate::cpu::isa::Isa::Avx512Bf16 | $crate::cpu::isa::Isa::Amx => avx512 $(::<$($t,)? $($c),*>)? ($($arg),*),
                    _ => $body::<$crate::cpu::lanes::portable::Portable, $($($t,)? $($c),*)?>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use versions;

#[cfg(test)]
mod tests {
    use crate::cpu::{
        isa::Isa,
        lanes::{LANES, Lanes, byte_scale},
    };

    versions! {
        unsafe fn exp_of(x: &[f32; LANES]) -> [f32; LANES] = exp_body
    }

    #[inline(always)]
    unsafe fn exp_body<V: Lanes>(x: &[f32; LANES]) -> [f32; LANES] {
        // SAFETY: arrays of 16; the instruction set is the caller's promise.
        unsafe { V::load(x.as_ptr()).exp().to_array() }
    }

    versions! {
        unsafe fn byte_scale_of(x: &[f32]) -> (f32, f32) = byte_scale
    }

    #[test]
    fn a_number_that_is_none_hides_no_other_from_the_scale_of_bytes() {
        let x: Vec<f32> = (0..3 * LANES + 5).map(|i| i as f32 - 20.0).collect();
        for isa in Isa::available() {
            for at in 0..x.len() {
                let mut spoiled = x.clone();
                spoiled[at] = f32::NAN;
                let largest = spoiled.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
                // SAFETY: the ISA is available.
                let scale = unsafe { byte_scale_of(isa, &spoiled) };
                assert_eq!(scale, (largest / 127.0, 127.0 / largest), "{isa:?} {at}");
            }
        }
    }

    #[test]
    fn exp_is_within_two_units_and_reaches_zero() {
        for isa in Isa::available() {
            let mut worst = 0f64;
            for step in 0..20_000 {
                let x = -87.0 + step as f32 * (174.0 / 20_000.0);
                // SAFETY: the ISA is available.
                let y = unsafe { exp_of(isa, &[x; LANES]) }[7];
                let exact = f64::from(x).exp();
                worst = worst.max((f64::from(y) - exact).abs() / exact);
            }
            assert!(worst < 2.4e-7, "{isa:?}: relative error {worst}");
            // SAFETY: the ISA is available.
            let zeros = unsafe { exp_of(isa, &[f32::NEG_INFINITY; LANES]) };
            assert_eq!(zeros, [0.0; LANES]);
            // SAFETY: the ISA is available.
            assert_eq!(unsafe { exp_of(isa, &[0.0; LANES]) }, [1.0; LANES]);
        }
    }
}
