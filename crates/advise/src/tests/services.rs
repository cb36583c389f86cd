//! Published services of DeepSeek-V3, with their stated inputs.
//!
//! Sources: DeepSeek's open-infra-index (day 6) and profile-data, in the figures of LMSYS, and LMSYS's blog
//! of 5 May 2025 on 96 H100. Routing is even where the source says so, and the rest of the model is as
//! measured.

use super::{even_step, parts, times_of};
use crate::step::{Phase, StepWork};
use crate::{ModelSpec, Parallelism};

struct Service {
    name: &'static str,
    gpu: &'static str,
    phase: Phase,
    ranks: u64,
    slots: u64,
    /// Tokens per GPU and pass.
    tokens: f64,
    overlap: bool,
    /// Published tokens per second and GPU.
    published: f64,
}

const SERVICES: [Service; 7] = [
    Service {
        name: "SGLang, decode EP72, 256 per GPU, context 2000",
        gpu: "h100",
        phase: Phase::Decode { context: 2_000 },
        ranks: 72,
        slots: 288,
        tokens: 256.0,
        overlap: true,
        published: 2_785.0,
    },
    Service {
        name: "SGLang, prefill EP32, prompts of 1000",
        gpu: "h100",
        phase: Phase::Prefill { prompt: 1_000 },
        ranks: 32,
        slots: 288,
        tokens: 16_384.0,
        overlap: true,
        published: 7_209.0,
    },
    Service {
        name: "SGLang, prefill EP32, prompts of 4000",
        gpu: "h100",
        phase: Phase::Prefill { prompt: 4_000 },
        ranks: 32,
        slots: 288,
        tokens: 16_384.0,
        overlap: true,
        published: 6_288.0,
    },
    Service {
        name: "SGLang, prefill EP32, prompts of 4000, forced balance",
        gpu: "h100",
        phase: Phase::Prefill { prompt: 4_000 },
        ranks: 32,
        slots: 288,
        tokens: 16_384.0,
        overlap: true,
        published: 7_417.0,
    },
    Service {
        name: "DeepSeek profile, prefill EP32, forced balance",
        gpu: "h800",
        phase: Phase::Prefill { prompt: 4_096 },
        ranks: 32,
        slots: 256,
        tokens: 16_384.0,
        overlap: true,
        published: 7_839.0,
    },
    Service {
        name: "DeepSeek profile, decode EP128, 128 per GPU, forced balance",
        gpu: "h800",
        phase: Phase::Decode { context: 4_096 },
        ranks: 128,
        slots: 256,
        tokens: 128.0,
        overlap: true,
        published: 2_325.0,
    },
    Service {
        name: "DeepSeek, decode EP144, 88 per GPU, context 4989",
        gpu: "h800",
        phase: Phase::Decode { context: 4_989 },
        ranks: 144,
        slots: 288,
        tokens: 88.0,
        overlap: true,
        published: 1_850.0,
    },
];

#[test]
fn published_services_are_predicted() {
    let model = ModelSpec::of_known("deepseek-v3".parse().unwrap()).unwrap();
    println!(
        "{:62} {:>9} {:>9} {:>7}   attention, dense, experts, exchange, ms",
        "service", "published", "ours", "off"
    );
    let mut worst = 0.0f64;
    for service in &SERVICES {
        let times = times_of(&model, service.gpu, "h100", "sglang", 2.0);
        let parallel = Parallelism { ranks: service.ranks, attention_tp: 1, pp: 1, expert_tp: 1 };
        let work = StepWork {
            phase: service.phase,
            tokens: service.tokens,
            tokens_per_request: 1.0,
            attention_tiles: 1,
            attention_imbalance: 1.0,
            overlap: service.overlap,
            planned: false,
            kv_bytes: 2.0,
        };
        let step = even_step(&model, &parallel, &times, &work, service.slots);
        let rate = service.tokens / step.total_ms() * 1e3;
        let off = rate / service.published - 1.0;
        worst = worst.max(off.abs());
        println!(
            "{:62} {:9.0} {rate:9.0} {:+6.1} %  {}",
            service.name,
            service.published,
            100.0 * off,
            parts(&step)
        );
    }
    println!("worst {:.0} %", 100.0 * worst);
}
