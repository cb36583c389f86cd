//! Times of the kernels on a GPU, by CUDA events around replays of a recorded graph:
//! `cargo bench --bench cuda`. Says so where there is no GPU.
#![allow(missing_docs, clippy::unwrap_used)]

#[cfg(feature = "cuda")]
fn main() {
    use evenkeel::cuda::{Context, probe};
    if let Err(error) = probe() {
        println!("no CUDA device: {error}");
        return;
    }
    let gpu = Context::open(0).unwrap();
    println!("{} ({})", gpu.device().name, gpu.device().arch());
    println!("{:>7} {:>7} {:>9} {:>9} {:>11} {:>9}", "size", "kernel", "p50 us", "p99 us", "bytes", "GB/s");
    cuda::solve(&gpu);
    cuda::tokens(&gpu);
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("built without the feature `cuda`");
}

#[cfg(feature = "cuda")]
mod cuda {
    use evenkeel::cluster::Cluster;
    use evenkeel::cuda::cudarc::driver::sys::CUevent_flags;
    use evenkeel::cuda::{Context, CudaError, DevicePlanner, DeviceSolver};
    use evenkeel::place::Placement;
    use evenkeel_solver::bench::corpus::{SIZES, Size};
    use std::sync::Arc;

    const ROUNDS: usize = 200;

    /// Replays what `enqueue` enqueues; microseconds per replay, sorted.
    fn replay(gpu: &Arc<Context>, enqueue: impl FnOnce() -> Result<(), CudaError>) -> Vec<f64> {
        let graph = gpu.capture(enqueue).unwrap().unwrap();
        let event = || Some(CUevent_flags::CU_EVENT_DEFAULT);
        let mut times: Vec<f64> = (0..ROUNDS + 20)
            .map(|_| {
                let begin = gpu.stream().record_event(event()).unwrap();
                graph.launch().unwrap();
                let end = gpu.stream().record_event(event()).unwrap();
                f64::from(begin.elapsed_ms(&end).unwrap()) * 1e3
            })
            .skip(20)
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }

    fn show(size: &str, kernel: &str, times: &[f64], bytes: usize) {
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        let rate = bytes as f64 / p50 / 1e3;
        println!("{size:>7} {kernel:>7} {p50:>9.2} {p99:>9.2} {bytes:>11} {rate:>9.2}");
    }

    /// One layer per replay, all batches of the corpus: what a serving loop sees.
    pub(super) fn solve(gpu: &Arc<Context>) {
        for size in SIZES.into_iter().filter(|size| size.ranks >= 8 && (size.slots == 2 || size.ranks == 288))
        {
            let name = format!("{}x{}", size.ranks, size.slots);
            let mut times = Vec::new();
            let mut bytes = 0;
            for series in size.corpus(4).unwrap() {
                let mut solver = DeviceSolver::new(gpu, std::slice::from_ref(&series.problem), 1).unwrap();
                for counts in &series.batches {
                    solver.upload_counts(0, counts).unwrap();
                    times.extend(replay(gpu, || solver.solve(0..1)));
                }
                let program = &solver.programs()[0];
                // Counts and program in; quotas, rank loads, peak and certificate out.
                bytes = 4 * (program.items() + program.words().len() + program.ranks().div_ceil(32))
                    + 8 * (program.pairs() + program.ranks() + 1);
            }
            times.sort_by(f64::total_cmp);
            show(&name, "solve", &times, bytes);
        }
    }

    /// Count, share and map of a decode and of a prefill batch, top-8 of 256 experts.
    pub(super) fn tokens(gpu: &Arc<Context>) {
        for size in [Size { ranks: 8, slots: 2 }, Size { ranks: 64, slots: 2 }] {
            let (ranks, experts) = (size.ranks, 256);
            let slots = experts + ranks * size.slots;
            let map = (0..slots).map(|slot| Some((slot * 7 % slots % experts) as u32)).collect();
            let placement = Placement::new(experts, ranks, map).unwrap();
            let cluster = Cluster::new(ranks, 1, experts, ranks * size.slots).unwrap();
            for tokens in [128i32, 16384] {
                let ids: Vec<i32> = (0..tokens * 8).map(|i| i.wrapping_mul(i).rem_euclid(256)).collect();
                let ids = gpu.upload(&ids).unwrap();
                let mut slots = gpu.upload(&vec![0i32; ids.len()]).unwrap();
                let mut planner =
                    DevicePlanner::new(gpu, std::slice::from_ref(&placement), &cluster, 0, ids.len())
                        .unwrap();
                let name = format!("{ranks}x{}", size.slots);
                println!("{tokens} tokens");
                show(&name, "count", &replay(gpu, || planner.count(&ids)), 4 * ids.len());
                show(&name, "share", &replay(gpu, || planner.share(0)), 4 * ranks * experts);
                show(&name, "map", &replay(gpu, || planner.map(0, &ids, &mut slots)), 8 * ids.len());
            }
        }
    }
}
