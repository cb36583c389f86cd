//! Times the kernels on a GPU, by CUDA events around launches of a recorded graph: `cargo bench -p
//! evenkeel-cuda --bench cuda`. Prints a notice without a GPU.
#![allow(missing_docs, clippy::unwrap_used)]

fn main() {
    use evenkeel_cuda::{GpuContext, probe_devices};
    if let Err(error) = probe_devices() {
        println!("no CUDA device: {error}");
        return;
    }
    let gpu = GpuContext::open(0).unwrap();
    println!("{} ({})", gpu.device().name, gpu.device().arch());
    println!("{:>7} {:>7} {:>9} {:>9} {:>11} {:>9}", "size", "kernel", "p50 us", "p99 us", "bytes", "GB/s");
    cuda::solve(&gpu);
    cuda::tokens(&gpu);
}

mod cuda {
    use evenkeel::cluster::Cluster;
    use evenkeel::place::Placement;
    use evenkeel_cuda::cudarc::driver::sys::CUevent_flags;
    use evenkeel_cuda::{CudaError, DevicePlanner, DeviceSolver, GpuContext};
    use evenkeel_solver::bench::corpus::{CorpusSize, SIZES};
    use std::sync::Arc;

    const ROUNDS: usize = 200;

    /// Records the work of `enqueue` and launches it repeatedly. Returns the microseconds per launch, sorted.
    fn replay(gpu: &Arc<GpuContext>, enqueue: impl FnOnce() -> Result<(), CudaError>) -> Vec<f64> {
        let graph = gpu.capture_graph(enqueue).unwrap().unwrap();
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

    /// Times one layer per launch, over all batches of the corpus, as a serving loop runs it.
    pub(super) fn solve(gpu: &Arc<GpuContext>) {
        for size in SIZES.into_iter().filter(|size| size.ranks >= 8 && (size.slots == 2 || size.ranks == 288))
        {
            let name = format!("{}x{}", size.ranks, size.slots);
            let mut times = Vec::new();
            let mut bytes = 0;
            for series in size.build_corpus(4).unwrap() {
                let mut solver = DeviceSolver::new(gpu, std::slice::from_ref(&series.problem), 1).unwrap();
                for counts in &series.batches {
                    solver.upload_counts(0, counts).unwrap();
                    times.extend(replay(gpu, || solver.solve(0..1)));
                }
                let program = &solver.programs()[0];
                // Bytes moved: counts and program in; quotas, rank loads, peak and certificate out.
                bytes = 4 * (program.items() + program.words().len() + program.ranks().div_ceil(32))
                    + 8 * (program.pairs() + program.ranks() + 1);
            }
            times.sort_by(f64::total_cmp);
            show(&name, "solve", &times, bytes);
        }
    }

    /// Times count, share and map of a decode and of a prefill batch, top-8 of 256 experts.
    pub(super) fn tokens(gpu: &Arc<GpuContext>) {
        for size in [CorpusSize { ranks: 8, slots: 2 }, CorpusSize { ranks: 64, slots: 2 }] {
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
                show(&name, "count", &replay(gpu, || planner.count_ids(&ids)), 4 * ids.len());
                show(&name, "share", &replay(gpu, || planner.compute_shares(0)), 4 * ranks * experts);
                show(&name, "map", &replay(gpu, || planner.map_ids(0, &ids, &mut slots)), 8 * ids.len());
            }
        }
    }
}
