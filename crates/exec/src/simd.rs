//! Numeric loops without branches and calls, so that the compiler vectorises them at the width of the machine
//! ([`run_vectorised`]).

#![allow(clippy::inline_always, reason = "code that is not inlined is not compiled for wider vectors")]

use half::bf16;

/// Runs `work`, whose loops are compiled for every vector width and dispatched to that of the machine. The
/// functions that it calls must be inlined to benefit.
pub(crate) fn run_vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// A number type of stored weights.
pub(crate) trait IntoF32: Copy {
    /// Converts to `f32`, exactly.
    fn into_f32(self) -> f32;
}

impl IntoF32 for f32 {
    #[inline(always)]
    fn into_f32(self) -> f32 {
        self
    }
}

impl IntoF32 for bf16 {
    #[inline(always)]
    fn into_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Converts bf16 to `f32`, exactly. Resizes `out` to fit.
pub(crate) fn widen_bf16(numbers: &[bf16], out: &mut Vec<f32>) {
    out.resize(numbers.len(), 0.0);
    widen_into(numbers, out);
}

/// Converts bf16 to `f32`, exactly, up to the shorter of both slices.
pub(crate) fn widen_into(numbers: &[bf16], out: &mut [f32]) {
    run_vectorised(|| out.iter_mut().zip(numbers).for_each(|(wide, x)| *wide = x.into_f32()));
}

/// Converts `f32` to the nearest bf16, ties to even.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // NaN must remain NaN.
    let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    bf16::from_bits((bits >> 16) as u16)
}

/// Computes `e^x` to about two units in the last place: `2^n` times a polynomial (Cephes' `expf`). Clamps `x`
/// to +-87.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this constant rounds to a whole number, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    y * f32::from_bits(power)
}

/// Computes `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Computes the hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right_to_the_last_digits() {
        for i in -87_000..=87_000 {
            let x = i as f32 / 1000.0;
            let (y, right) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((y / right - 1.0).abs() < 2.5e-7, "{x}: {y} for {right}");
        }
        assert!(exp(-200.0) < 1e-37 && exp(200.0) > 1e37 && exp(f32::NAN).is_nan());
        assert!((tanh(0.3) - 0.3f32.tanh()).abs() < 1e-6 && (sigmoid(-2.0) - 0.119_202_92).abs() < 1e-7);
    }

    #[test]
    fn narrowing_is_that_of_the_crate() {
        let bits = (0..1 << 16).map(|i: u32| i << 16 | (i.wrapping_mul(40_503) & 0xffff));
        for x in bits.chain([0x0000_8000, 0x0001_8000, 0x7f7f_ffff]).map(f32::from_bits) {
            let (ours, theirs) = (round_to_bf16(x), bf16::from_f32(x));
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{x}: {ours} for {theirs}");
        }
    }
}
