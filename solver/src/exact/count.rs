//! The whole numbers of the fast loop: what callers may count in, and what it computes in.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Sub, SubAssign};

/// What loads are counted in: `u32`, as kernels count, or `u64`.
pub(crate) trait Count: Copy + Debug {
    /// The count.
    fn to_u64(self) -> u64;

    /// The sum of counts and a number, unless it exceeds 64 bits.
    fn sum(counts: &[Self], more: u64) -> Option<u64>;

    /// Copies the counts and returns their sum, if it is plain from their sizes that it fits 31 bits.
    fn tabulate(counts: &[Self], table: &mut [u32]) -> Option<u32>;
}

/// Whether no more than this many numbers, whose bits are all among these, add up to 31 bits at most: if each of n
/// numbers has at most b bits and n has c bits, the sum has at most b + c.
fn fits_31_bits(bits: u64, numbers: usize) -> bool {
    bits.leading_zeros() + (numbers as u64).leading_zeros() >= 64 + 33
}

impl Count for u32 {
    fn to_u64(self) -> u64 {
        u64::from(self)
    }

    fn sum(counts: &[u32], more: u64) -> Option<u64> {
        // There are fewer than 2^32 items.
        more.checked_add(counts.iter().map(|&count| u64::from(count)).sum())
    }

    fn tabulate(counts: &[u32], table: &mut [u32]) -> Option<u32> {
        let (mut sum, mut bits) = (0u32, 0);
        for (copy, &count) in table.iter_mut().zip(counts) {
            *copy = count;
            sum = sum.wrapping_add(count);
            bits |= count;
        }
        fits_31_bits(u64::from(bits), counts.len()).then_some(sum)
    }
}

impl Count for u64 {
    fn to_u64(self) -> u64 {
        self
    }

    fn sum(counts: &[u64], more: u64) -> Option<u64> {
        // Without a branch per load: if each of n loads has at most b bits and n has c bits, the sum has at
        // most b + c, and up to 64 the wrapping sum is the sum.
        let add = |(sum, bits): (u64, u64), &load: &u64| (sum.wrapping_add(load), bits | load);
        let (sum, bits) = counts.iter().fold((0, 0), add);
        if bits.leading_zeros() + (counts.len() as u64).leading_zeros() >= 64 {
            return more.checked_add(sum);
        }
        counts.iter().try_fold(more, |sum, &load| sum.checked_add(load))
    }

    fn tabulate(counts: &[u64], table: &mut [u32]) -> Option<u32> {
        let (mut sum, mut bits) = (0u32, 0);
        for (copy, &count) in table.iter_mut().zip(counts) {
            *copy = count as u32;
            sum = sum.wrapping_add(count as u32);
            bits |= count;
        }
        fits_31_bits(bits, counts.len()).then_some(sum)
    }
}

/// A signed number as wide as the sum of all loads wants it: loads above or below a room.
///
/// All three widths give the same answers; narrow ones take less memory.
pub(super) trait Whole:
    Copy + Ord + Default + Debug + Add<Output = Self> + Sub<Output = Self> + AddAssign + SubAssign
{
    const ZERO: Self;
    const ONE: Self;

    /// A number that the caller knows to fit.
    fn from_u64(value: u64) -> Self;
    fn from_count<C: Count>(value: C) -> Self;
    /// A number that the caller knows not to be negative.
    fn to_u64(self) -> u64;
    /// Half, rounded down.
    fn half(self) -> Self;
    /// A multiple, or the largest number where that is less.
    fn times(self, count: usize) -> Self;
    /// Quotient and remainder of a number that is not negative.
    fn divide(self, count: usize) -> (Self, usize);
}

macro_rules! whole {
    ($type:ty) => {
        #[allow(clippy::cast_possible_wrap, reason = "the width is chosen by the total")]
        impl Whole for $type {
            const ZERO: $type = 0;
            const ONE: $type = 1;

            fn from_u64(value: u64) -> $type {
                value as $type
            }

            fn from_count<C: Count>(value: C) -> $type {
                value.to_u64() as $type
            }

            fn to_u64(self) -> u64 {
                self as u64
            }

            fn half(self) -> $type {
                self >> 1
            }

            fn times(self, count: usize) -> $type {
                self.saturating_mul(count as $type)
            }

            fn divide(self, count: usize) -> ($type, usize) {
                (self / count as $type, (self % count as $type) as usize)
            }
        }
    };
}

whole!(i32);
whole!(i64);
whole!(i128);
