//! How long one thread has worked: what the rest of the machine does at the same time does not count.
//!
//! A rank's phases run on one thread, one rank after the other. On a machine with other work on it a wall clock would mostly tell
//! which rank was interrupted; the thread's own processor time is what it would take on a core to itself, but for caches and
//! memory that are shared.

use std::time::Duration;

/// Processor time of this thread so far; where the system does not tell, the time that passed.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Processor time of this thread so far; where the system does not tell, the time that passed.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub fn thread_time() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
}

/// Does something and adds the time that it took this thread.
pub fn timed<T>(time: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begun = thread_time();
    let done = work();
    *time += thread_time().saturating_sub(begun);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_sleep_does_not() {
        let (mut asleep, mut awake) = (Duration::ZERO, Duration::ZERO);
        timed(&mut asleep, || std::thread::sleep(Duration::from_millis(30)));
        timed(&mut awake, || (0..3_000_000u64).fold(0, |sum, i| std::hint::black_box(sum ^ i)));
        assert!(awake > Duration::from_micros(100), "{awake:?}");
        if cfg!(target_os = "linux") {
            assert!(asleep < Duration::from_millis(15), "{asleep:?}");
        }
    }
}
