//! Times of ranks: monotone, whole, and the same for the same rows.

use evenkeel::split::CostModel;
use evenkeel_cost::{
    CacheState, CostDatabase, Dtype, Feature, KernelEntry, MoeShape, Provenance, RankKernel, builtin_gpus,
};
use proptest::prelude::*;

fn kernels(shape: MoeShape) -> Vec<RankKernel> {
    let databases = builtin_gpus().into_iter().map(|gpu| CostDatabase::builtin(gpu).unwrap());
    databases
        .flat_map(|database| {
            let both = [CacheState::Cold, CacheState::Warm];
            let models = database
                .kernels
                .iter()
                .flat_map(|entry| both.map(|cache| RankKernel::new(entry, &database.hardware, shape, cache)));
            models.collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn no_rows_take_no_time() {
    let shape = MoeShape { hidden: 7168, intermediate: 2048, top_k: 8, experts: 256, slots: 8, matrices: 3 };
    for kernel in kernels(shape) {
        assert_eq!((kernel.rank_ps(&[0; 8], 1), kernel.expert_ps(0)), (0, 0));
        let one = kernel.rank_ps(&[1, 0, 0, 0, 0, 0, 0, 0], 1);
        assert!(one as f64 >= kernel.launch_floor_us() * 1e6);
        assert_eq!(kernel.rank_ps(&[1, 0, 0, 0, 0, 0, 0, 0], 2), one.div_ceil(2));
    }
}

#[test]
fn a_cold_cache_is_never_faster() {
    let database = CostDatabase::builtin("h100").unwrap();
    let shape = MoeShape { hidden: 2048, intermediate: 768, top_k: 8, experts: 128, slots: 16, matrices: 3 };
    for entry in &database.kernels {
        let [cold, warm] = [CacheState::Cold, CacheState::Warm]
            .map(|cache| RankKernel::new(entry, &database.hardware, shape, cache).rank_ps(&[4; 16], 1));
        assert!(cold >= warm, "{}", entry.kernel);
    }
}

/// A kernel with 5 microseconds of launch, and weights at half of the bandwidth.
#[test]
fn times_add_up_by_hand() {
    let hardware = CostDatabase::builtin("h100").unwrap().hardware;
    let coefficients = [(Feature::Launch, 5.0), (Feature::WeightRead, 2.0)].into();
    let mut entry = KernelEntry::new("own", "1", "by hand", Dtype::Fp8, coefficients);
    let shape = MoeShape { hidden: 6700, intermediate: 1000, top_k: 2, experts: 4, slots: 4, matrices: 3 };
    let kernel = RankKernel::new(&entry, &hardware, shape, CacheState::Cold);
    // An expert has 20.1 MB, which 3350 GB/s read in 6 microseconds.
    assert!((kernel.time_us(&[3, 0, 1, 0], 2) - 29.0).abs() < 1e-9);
    assert!(
        (kernel.expert_ps(7) as f64 - 12e6).abs() <= 1.0
            && (kernel.rank_ps(&[7], 1) as f64 - 17e6).abs() <= 1.0
    );
    // With tuned tiles for this shape weights come at the whole bandwidth. Other widths keep their time.
    entry.tuned_widths = [(4, vec![1000])].into();
    entry.tuned_coefficients = [(Feature::Launch, 5.0), (Feature::WeightRead, 1.0)].into();
    let tuned = RankKernel::new(&entry, &hardware, shape, CacheState::Cold);
    assert!((tuned.time_us(&[3, 0, 1, 0], 2) - 17.0).abs() < 1e-9);
    let wider = MoeShape { intermediate: 2000, ..shape };
    let plain = RankKernel::new(&entry, &hardware, wider, CacheState::Cold);
    assert!((plain.time_us(&[3, 0, 1, 0], 2) - 53.0).abs() < 1e-9);
    let provenance = Provenance::new("own measurements", "1", "none");
    let database = CostDatabase::new("h100", hardware, provenance, vec![entry]);
    assert_eq!(CostDatabase::from_json(&database.to_json().unwrap()).unwrap(), database);
}

#[test]
fn a_model_selects_its_kernel() {
    let database = CostDatabase::builtin("b200").unwrap();
    let model = "deepseek-v3".parse().unwrap();
    let kernel = RankKernel::of_model(&database, "trtllm", Dtype::Nvfp4, &model, 288, 32).unwrap();
    let shape = MoeShape { hidden: 7168, intermediate: 2048, top_k: 8, experts: 288, slots: 9, matrices: 3 };
    assert_eq!(*kernel.shape(), shape);
    assert!(RankKernel::of_model(&database, "trtllm", Dtype::W4afp8, &model, 288, 32).is_err());
}

#[test]
fn gathered_tokens_count() {
    let database = CostDatabase::builtin("h100").unwrap();
    let shape = MoeShape { hidden: 7168, intermediate: 2048, top_k: 8, experts: 256, slots: 8, matrices: 3 };
    let kernel = RankKernel::find(&database, "sglang", Dtype::Fp8Block, shape).unwrap();
    let gathered = kernel.clone().with_gathered_tokens(16_384);
    assert!(gathered.rank_ps(&[64; 8], 1) > kernel.rank_ps(&[64; 8], 1));
    assert_eq!(gathered.tokens_of_rows(512, 64), 16_384);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// One more row on any slot never takes less time, for every kernel of every table.
    #[test]
    fn more_rows_never_take_less_time(
        rows in prop::collection::vec(prop_oneof![0u64..4, 0u64..300, 0u64..40_000], 8),
        slot in 0usize..8,
        more in 1u64..500,
        (hidden, intermediate) in (1u64..9000, 1u64..9000),
        ranks in prop::sample::select(vec![1u64, 4, 32]),
        matrices in 2u64..4,
    ) {
        let experts = 8 * ranks;
        let shape = MoeShape { hidden, intermediate, top_k: 8, experts, slots: 8, matrices };
        let mut larger = rows.clone();
        larger[slot] += more;
        for kernel in kernels(shape) {
            prop_assert!(kernel.rank_ps(&rows, 1) <= kernel.rank_ps(&larger, 1));
            prop_assert!(kernel.expert_ps(rows[slot]) <= kernel.expert_ps(larger[slot]));
            prop_assert!(kernel.time_us(&rows, 100) <= kernel.time_us(&rows, 101));
        }
    }
}
