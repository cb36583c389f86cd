//! The memory that all requests together may take.
//!
//! A body counts with the most memory that its parsing needs, until its steps are on disk. A reply counts
//! until its last byte is sent. The texts of plans are shared and do not count. Small bodies have a part of
//! their own, so that large ones cannot block them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest body, in bytes, that counts as small.
pub(crate) const SMALL_BODY_BYTES: usize = 1 << 20;

/// A part of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryPart {
    /// Bodies up to [`SMALL_BODY_BYTES`].
    SmallBodies,
    /// Larger bodies, and those of unknown length.
    LargeBodies,
    Replies,
}

impl MemoryPart {
    /// Returns the part for a body, from its announced length.
    pub(crate) fn for_body(length: Option<usize>) -> Self {
        if length.is_some_and(|length| length <= SMALL_BODY_BYTES) {
            MemoryPart::SmallBodies
        } else {
            MemoryPart::LargeBodies
        }
    }

    /// Returns the bytes of this part, from those of all the memory.
    fn share_bytes(self, memory: usize) -> usize {
        let eighths = match self {
            MemoryPart::SmallBodies => 1,
            MemoryPart::LargeBodies => 5,
            MemoryPart::Replies => 2,
        };
        memory / 8 * eighths
    }
}

/// The bytes in use of every part.
#[derive(Debug, Default)]
pub(crate) struct MemoryBudget([AtomicUsize; 3]);

/// A reservation of memory, which is released by its drop.
#[derive(Debug)]
pub(crate) struct MemoryReservation {
    memory: Arc<MemoryBudget>,
    part: MemoryPart,
    bytes: usize,
}

impl MemoryBudget {
    /// Returns an empty reservation.
    pub(crate) fn reserve(self: &Arc<Self>, part: MemoryPart) -> MemoryReservation {
        MemoryReservation { memory: self.clone(), part, bytes: 0 }
    }
}

impl MemoryReservation {
    /// Reserves more bytes. Returns false if the part has too few left. `all` is the size of all the memory.
    pub(crate) fn try_grow(&mut self, bytes: usize, all: usize) -> bool {
        let most = self.part.share_bytes(all);
        let used = &self.memory.0[self.part as usize];
        let taken = used.try_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(bytes).filter(|&after| after <= most)
        });
        if taken.is_ok() {
            self.bytes += bytes;
        }
        taken.is_ok()
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.memory.0[self.part as usize].fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_bounded_apart_and_given_back() {
        let memory = Arc::new(MemoryBudget::default());
        let mut large = memory.reserve(MemoryPart::for_body(None));
        assert!(large.try_grow(500, 800) && !large.try_grow(1, 800));
        let mut small = memory.reserve(MemoryPart::for_body(Some(10)));
        assert!(small.try_grow(100, 800) && !small.try_grow(1, 800) && !small.try_grow(usize::MAX, 800));
        drop(large);
        assert!(memory.reserve(MemoryPart::LargeBodies).try_grow(500, 800));
        assert!(memory.reserve(MemoryPart::Replies).try_grow(200, 800));
    }
}
