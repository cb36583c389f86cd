//! `evenkeel plan`: a trace in, a placement out.

use super::and_args::{self, And};
use super::cluster_args::{ClusterArgs, check_groups};
use super::links::Links;
use super::memory::Memory;
use super::output::{Bar, Output, print, write_file};
use super::past_args::PastArgs;
use super::plan_check::{self, CheckArgs};
use super::plan_told::{Further, document, summary};
use super::secure_args::{self, Secure};
use super::speeds::BySpeed;
use super::trace_args::TraceArgs;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use evenkeel::export::Target;
use evenkeel::place::{self, Contiguous, Eplb, ForSpeeds, Policy, Secured, Ties};
use evenkeel::plan::{Made, Origin, Past, Plan};
use evenkeel::report::Page;
use evenkeel::simulate::{Config, simulate};
use evenkeel::split::Method;
use evenkeel::trace::Trace;
use std::path::PathBuf;

/// Plan where the copies of every layer's experts live, and write the plan.
///
/// The policy looks at the whole trace. A placement is as good as the split that runs on it: --for names the runtime. Without
/// it the plan is never above EPLB under the even split, as far as batches held back show, and as good as that allows where
/// every batch is split exactly. Expected imbalances are of the same batches; `simulate` judges on batches that planning has
/// not seen.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  evenkeel plan loads.csv --ranks 32 --nodes 4 --redundant 32 -o plan.json --report \
                  report.html\n  evenkeel plan dump.pt --ranks 32 --redundant 32 --for sglang -o plan.json\n  evenkeel plan dumps/ --ranks 16 --policy lplb:hypercube --redundant 32 -o plan.json\n  \
                  evenkeel plan loads.csv --previous plan.json --max-moves 2 -o next.json\n  evenkeel plan \
                  loads.csv --previous plan.json --without-rank 7 -o next.json\n  evenkeel plan loads.csv --ranks 8 \
                  --redundant 64 --secure 1 -o plan.json\n  evenkeel plan check plan.json"
)]
pub(crate) struct PlanCommand {
    #[command(subcommand)]
    sub: Option<PlanSub>,
    #[command(flatten)]
    args: PlanArgs,
}

#[derive(Debug, Subcommand)]
enum PlanSub {
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// recourse, contiguous, eplb, eplb:trtllm, lplb:TOPOLOGY (see `evenkeel topology --help`), lp-round or milp
    ///
    /// recourse searches for the placement whose batches split best, by the split of --for. Options follow it, each behind a
    /// colon: a split instead (exact, even, vllm, ..); cvar=0.9 (the worst tenth of the batches counts) or worst instead of the
    /// mean; seed=N; iterations=N. lp-round rounds a linear
    /// programme. milp proves the best placement for up to 16 batches of up to 8 experts; it needs the feature `highs`.
    #[arg(long, value_name = "NAME", default_value = "recourse")]
    policy: String,
    /// Runtime that the plan is for: evenkeel, sglang, vllm, vllm-ascend or trtllm; it decides which split is planned for
    ///
    /// sglang:exact and vllm:exact run with EVENKEEL_SPLIT=exact and no CUDA graphs. SGLang's rule depends on its flags: give
    /// them behind the name, as in sglang:moe-a2a-backend=deepep,ep-dispatch-algorithm=dynamic, or the rule, as in
    /// sglang:static. Without flags --moe-a2a-backend is none. With --previous the default is that plan's runtime. evenkeel is `evenkeel run` and the library's planner.
    #[arg(long = "for", value_name = "RUNTIME")]
    target: Option<Target>,
    /// Plan for another trace at the same time, say decode beside prefill; WEIGHT 1 gives it as many batches as TRACE has
    ///
    /// May be given several times. Experts and layers have to be the same. Batch options are TRACE's, unless :decode=REQUESTS
    /// or :prefill=TOKENS follows. What the plan makes of each trace alone is told. To plan them apart, plan twice.
    #[arg(long, value_name = "TRACE:WEIGHT")]
    and: Vec<And>,
    #[command(flatten)]
    past: PastArgs,
    /// Every expert survives the loss of any one rank (1), or as many as the slots allow, heaviest first (best)
    ///
    /// What each possible loss does to the imbalance is computed exactly, and the worst is told.
    #[arg(long, value_name = "1|best", conflicts_with_all = ["max_moves", "without_rank", "link_budget"])]
    secure: Option<Secure>,
    /// Redundant slots of all layers together: layers get them where they lower peaks most, the others stay empty
    #[arg(long, value_name = "SLOTS", conflicts_with_all = ["previous", "redundant", "uneven"])]
    memory_budget: Option<usize>,
    /// How fast each rank is, one whole number per rank: faster ranks are given more
    ///
    /// The policy plans as for equal ranks; its placement, or one dealt out anew by speed, is then refined by exact splits at
    /// these speeds.
    #[arg(
        long,
        value_name = "N,..",
        value_delimiter = ',',
        conflicts_with_all = ["secure", "memory_budget", "without_rank", "horizon_steps", "link_budget", "report"]
    )]
    speeds: Vec<u32>,
    /// Write the plan here; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a picture of it here: one HTML file that needs no network; of plans made from scratch only
    #[arg(long, value_name = "FILE", conflicts_with_all = ["previous", "memory_budget"])]
    report: Option<PathBuf>,
}

pub(crate) fn run(command: PlanCommand, output: Output) -> anyhow::Result<()> {
    match command.sub {
        Some(PlanSub::Check(args)) => plan_check::run(&args, output),
        None => make(&command.args, output),
    }
}

fn make(args: &PlanArgs, output: Output) -> anyhow::Result<()> {
    check_groups(
        args.cluster.explicit.has("groups"),
        args.cluster.groups,
        std::slice::from_ref(&args.policy),
    )?;
    let model = args.past.model.map(|on| on.model);
    let (trace, blend) = and_args::blend(args.trace.read_for(model)?, &args.trace, &args.and)?;
    output.notices(trace.notices());
    let previous = args.past.read()?;
    let cluster = match &previous {
        Some(previous) => args.past.cluster(previous, &args.cluster, trace.experts(), output)?,
        None => args.cluster.cluster(trace.experts())?,
    };
    // What is planned again runs where the previous plan did.
    let before = previous.as_ref().and_then(|previous| previous.provenance.target.as_deref()?.parse().ok());
    let target: Option<Target> = args.target.or(before);
    let split = target.map_or(Method::Even, Target::split);
    let name = match target {
        Some(target) => place::for_split(&args.policy, target.split()),
        None => args.policy.clone(),
    };
    let mut policy = place::policy(&name, args.cluster.groups, &cluster)?;
    if let Some(Secure(cover)) = args.secure {
        policy = Box::new(Secured::new(policy, cover));
    }
    if !args.speeds.is_empty() {
        policy = Box::new(ForSpeeds::new(policy, args.speeds.clone()));
    }
    let batches = args.trace.batches(&trace);
    let batches = blend.as_ref().map_or(batches.clone(), |blend| blend.words(&batches, &args.and));
    let origin = Origin { seed: args.trace.seed, batches, target, split };
    let memory = Memory::of(model, &args.trace, &trace, &cluster);
    let mut more = Further { horizon: args.past.horizon()?, memory, ..Further::default() };
    let bar = Bar::layers();
    let made = if let Some(previous) = &previous {
        let past = Past {
            previous,
            lost: &args.past.without_rank,
            max_moves: args.past.max_moves,
            horizon: more.horizon,
        };
        if let Some(budget) = args.past.link_budget()? {
            let how = (&past, budget);
            let linked = Plan::make_linked(&trace, &cluster, policy.as_ref(), how, origin, &bar)?;
            more.links = Some(Links::of(&linked, budget));
            more.changes = Some(linked.changes);
            linked.made
        } else {
            let (made, changes) = Plan::make_after(&trace, &cluster, policy.as_ref(), &past, origin, &bar)?;
            more.changes = Some(changes);
            made
        }
    } else if let Some(budget) = args.memory_budget {
        let shape = (cluster.ranks(), cluster.nodes());
        let (made, redundant) = Plan::make_within(&trace, shape, policy.as_ref(), budget, origin, &bar)?;
        if let Some(memory) = &mut more.memory {
            memory.slots = redundant.iter().map(|&slots| slots as u64).sum();
        }
        more.redundant = Some(redundant);
        made
    } else {
        Plan::make(&trace, &cluster, policy.as_ref(), origin, &bar)?
    };
    drop(bar);
    if args.secure.is_some() {
        more.losses = Some(secure_args::losses(&made.plan, &trace)?);
    }
    more.parts = blend.map(|blend| blend.judged(&made.plan)).transpose()?;
    if !args.speeds.is_empty() {
        more.by_speed = Some(BySpeed::of(&made.plan, &trace, &args.speeds)?);
    }
    if let Some(path) = &args.output {
        write_file(path, &made.plan.to_json()?)?;
    }
    if let Some(path) = &args.report {
        write_file(path, &report(&trace, policy, &made, memory)?)?;
    }
    if args.output.as_deref() == Some(std::path::Path::new("-")) {
        return Ok(());
    }
    if output.json() {
        return super::output::document(&document(args.output.as_deref(), &trace, &made, &more));
    }
    print(&summary(&made, output.verbose()))?;
    print(&more.words(&made.plan, output.verbose()))?;
    match &args.output {
        Some(path) => output.note(&format!("plan written to {}", path.display())),
        None => output.note("nothing written: -o FILE writes the plan"),
    }
    Ok(())
}

/// Before (contiguous, even), EPLB and after, on the batches of the whole trace, under the split of the plan and the two usual
/// ones.
fn report(
    trace: &Trace,
    policy: Box<dyn Policy>,
    made: &Made,
    memory: Option<Memory>,
) -> anyhow::Result<String> {
    let all = 0..trace.steps().len();
    let methods = made.plan.provenance.figures.iter().map(|figure| figure.split.parse());
    let config = Config {
        cluster: made.plan.cluster,
        methods: methods.collect::<Result<_, _>>()?,
        plan_on: all.clone(),
        judge_on: all,
    };
    let title = format!("Plan by {}", policy.name());
    let mut policies: Vec<Box<dyn Policy>> = vec![Box::new(Contiguous)];
    if made.plan.cluster.is_even() && policy.name() != "eplb" {
        policies.push(Box::new(Eplb::new(1, Ties::LowestExpert)));
    }
    policies.push(policy);
    let outcome = simulate(trace, &config, &policies, &()).context("while making the report")?;
    let command = super::command_line();
    let page = Page { title, command, trace, cluster: &made.plan.cluster, outcome: &outcome, replayed: &[] };
    Ok(memory.map_or_else(|| page.html(), |memory| page.html_for(&memory.model)))
}
