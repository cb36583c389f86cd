//! Measures the processor time of one thread, which excludes other load of the machine.
//!
//! A rank's phases run on one thread, one rank after the other. On a busy machine a wall clock would mostly
//! show which rank was interrupted. The processor time of the thread is its time on a core of its own, apart
//! from shared caches and memory.

use std::time::Duration;

/// Returns the processor time of this thread so far.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns the elapsed time, because this system does not report the processor time of a thread.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub fn thread_time() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
}

/// Runs `work` and adds its time on this thread to `time`.
pub fn time_work<T>(time: &mut Duration, work: impl FnOnce() -> T) -> T {
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
        time_work(&mut asleep, || std::thread::sleep(Duration::from_millis(30)));
        time_work(&mut awake, || (0..3_000_000u64).fold(0, |sum, i| std::hint::black_box(sum ^ i)));
        assert!(awake > Duration::from_micros(100), "{awake:?}");
        if cfg!(target_os = "linux") {
            assert!(asleep < Duration::from_millis(15), "{asleep:?}");
        }
    }
}
