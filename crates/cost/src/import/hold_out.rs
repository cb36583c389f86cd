//! Choice of held-out rows by a stable hash of their shape.

/// One shape of this many is held out.
const HELD_OUT_EVERY: u64 = 5;

/// Parts of the cross-validation.
pub(super) const FOLDS: u64 = 4;

/// Returns the 64-bit FNV-1a hash of a text, with its bits mixed. It never changes.
pub(super) fn stable_hash(text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // The low bits of FNV depend on the low bits of the text alone. Mixer of Stafford, variant 13.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn shape_text(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join("|")
}

/// Returns true if the rows of a shape are held out.
pub(super) fn is_held_out(shape: &[u64]) -> bool {
    stable_hash(&format!("evenkeel hold-out|{}", shape_text(shape))).is_multiple_of(HELD_OUT_EVERY)
}

/// Returns the part of the cross-validation to which a shape belongs.
pub(super) fn fold_of(shape: &[u64]) -> u64 {
    stable_hash(&format!("evenkeel fold|{}", shape_text(shape))) % FOLDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_is_held_out() {
        let held = (0..1000).filter(|&n| is_held_out(&[7168, n, 8])).count();
        assert!((150..250).contains(&held), "{held}");
        // The choice never changes, or published errors would be of other rows.
        assert_eq!(stable_hash("evenkeel"), stable_hash("evenkeel"));
        assert_ne!(stable_hash("a"), stable_hash("b"));
    }
}
