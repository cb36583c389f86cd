//! A value behind a lock that a forked child can take.
//!
//! A process may fork while another of its threads holds the lock. The child then inherits a locked lock that
//! no thread of it ever unlocks. The child recognises the fork by its process id. If the lock is free, the
//! child keeps the value. Otherwise it continues with a new value.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

/// Attempts to take a lock that a parent's thread may hold, one millisecond apart. After them the child makes
/// a new value.
const MAX_LOCK_ATTEMPTS: u32 = 20;

/// A value for each process of a chain of forks.
pub(crate) struct ForkSafe<T> {
    process: AtomicU32,
    value: Mutex<T>,
    /// Value of a forked child that found the lock held.
    next: OnceLock<Box<ForkSafe<T>>>,
}

impl<T> ForkSafe<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { process: AtomicU32::new(std::process::id()), value: Mutex::new(value), next: OnceLock::new() }
    }

    /// Takes the lock of this process. `renew` makes a new value if a thread of the parent held the lock at
    /// the fork.
    pub(crate) fn lock<E>(&self, renew: impl Fn() -> Result<T, E>) -> Result<MutexGuard<'_, T>, E> {
        let process = std::process::id();
        let mut at = self;
        let mut tries = 0;
        loop {
            if at.process.load(Ordering::Acquire) == process {
                return Ok(at.value.lock().unwrap_or_else(PoisonError::into_inner));
            }
            if let Some(next) = at.next.get() {
                at = next;
                continue;
            }
            match at.value.try_lock() {
                Ok(guard) => {
                    at.process.store(process, Ordering::Release);
                    return Ok(guard);
                }
                Err(TryLockError::Poisoned(poisoned)) => {
                    at.process.store(process, Ordering::Release);
                    return Ok(poisoned.into_inner());
                }
                // Another thread of this process may hold the lock because it has just taken over the value.
                Err(TryLockError::WouldBlock) if tries < MAX_LOCK_ATTEMPTS => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => {
                    let fresh = Box::new(Self::new(renew()?));
                    at = at.next.get_or_init(|| fresh);
                }
            }
        }
    }
}
