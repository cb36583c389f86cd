//! Whole numbers of the fast loop: the counts of callers, and the numbers of the computation.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Sub, SubAssign};

/// Number type of loads: `u32`, as kernels count, or `u64`.
pub(crate) trait Count: Copy + Debug {
    /// Returns the count as 64 bits.
    fn to_u64(self) -> u64;

    /// Returns the sum of counts and a number, unless it exceeds 64 bits.
    fn checked_sum(counts: &[Self], more: u64) -> Option<u64>;

    /// Copies the counts and returns their sum, if their sizes prove that it fits 31 bits.
    fn copy_to_table(counts: &[Self], table: &mut [u32]) -> Option<u32>;
}

/// Returns true if the numbers certainly add up to at most 31 bits. `bits` holds all bits of at most
/// `numbers` numbers. If each of n numbers has at most b bits and n has c bits, the sum has at most b + c.
fn fits_31_bits(bits: u64, numbers: usize) -> bool {
    bits.leading_zeros() + (numbers as u64).leading_zeros() >= 64 + 33
}

impl Count for u32 {
    fn to_u64(self) -> u64 {
        u64::from(self)
    }

    fn checked_sum(counts: &[u32], more: u64) -> Option<u64> {
        // The sum cannot overflow, because there are fewer than 2^32 items.
        more.checked_add(counts.iter().map(|&count| u64::from(count)).sum())
    }

    fn copy_to_table(counts: &[u32], table: &mut [u32]) -> Option<u32> {
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

    fn checked_sum(counts: &[u64], more: u64) -> Option<u64> {
        // This needs no branch per load. If each of n loads has at most b bits and n has c bits, the sum has
        // at most b + c. Up to 64 bits the wrapping sum is the sum.
        let add = |(sum, bits): (u64, u64), &load: &u64| (sum.wrapping_add(load), bits | load);
        let (sum, bits) = counts.iter().fold((0, 0), add);
        if bits.leading_zeros() + (counts.len() as u64).leading_zeros() >= 64 {
            return more.checked_add(sum);
        }
        counts.iter().try_fold(more, |sum, &load| sum.checked_add(load))
    }

    fn copy_to_table(counts: &[u64], table: &mut [u32]) -> Option<u32> {
        let (mut sum, mut bits) = (0u32, 0);
        for (copy, &count) in table.iter_mut().zip(counts) {
            *copy = count as u32;
            sum = sum.wrapping_add(count as u32);
            bits |= count;
        }
        fits_31_bits(bits, counts.len()).then_some(sum)
    }
}

/// Signed number, as wide as the sum of all loads requires, for loads above or below a room.
///
/// All three widths give the same results. Narrow ones take less memory.
pub(super) trait Whole:
    Copy + Ord + Default + Debug + Add<Output = Self> + Sub<Output = Self> + AddAssign + SubAssign
{
    const ZERO: Self;
    const ONE: Self;

    /// Converts a number that the caller knows to fit.
    fn from_u64(value: u64) -> Self;
    fn from_count<C: Count>(value: C) -> Self;
    /// Converts a number that the caller knows not to be negative.
    fn to_u64(self) -> u64;
    /// Returns half of the number, rounded down.
    fn half(self) -> Self;
    /// Returns a multiple, saturating at the largest number.
    fn times(self, count: usize) -> Self;
    /// Returns quotient and remainder of a number that is not negative.
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
