//! Published rules that copy items for each batch, restated from their sources.
//!
//! In: loads, homes in blocks and a number of dynamic slots per rank. Out: pieces of items on other ranks.
//! Every rule is in its published form. UltraEP's and MoonEP's rules state their own quotas, as do LLEP's.
//!
//! | rule | source |
//! |---|---|
//! | `ultraep` | `csrc/kernels/placement.cu` of Dots-Infra/UltraEP, with its default options |
//! | `moonep` | `tests/planning_reference.py` of MoonEP |
//! | `llep` | `compute_llep_lpt_plan` of SalesforceAIResearch/LeastLoadedEP |
//! | `topoep` | second stage of TopoEP inside one node: half of the gap moves, two slots per rank |
//! | `shadow` | FasterMoE: the heaviest items are copied to all ranks, which serve their own tokens |

/// Published rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyRule {
    /// UltraEP: largest rooms first, at a threshold 1 % above the mean.
    UltraEp,
    /// MoonEP: every rank gets the mean.
    MoonEp,
    /// LLEP: least loaded rank first, in pieces of at least 1024 tokens.
    Llep,
    /// TopoEP: half of the gap between the busiest rank and another one.
    TopoEp,
    /// FasterMoE: copies on all ranks.
    Shadow,
}

/// Tokens of an item on a rank that is not its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedPiece {
    /// Item.
    pub item: usize,
    /// Rank with the copy.
    pub rank: usize,
    /// Tokens that the copy serves.
    pub tokens: u32,
}

/// Batch for a rule: homes are blocks of equally many items.
#[derive(Debug, Clone, Copy)]
pub struct RuleInput<'a> {
    /// Load of every item.
    pub loads: &'a [u32],
    /// Number of ranks.
    pub ranks: usize,
    /// Dynamic slots of every rank, for rules that have a limit.
    pub slots: usize,
    /// Peak that UltraEP's rule tries first: 1.01 of the mean by default.
    pub threshold: u32,
}

impl CopyRule {
    /// All rules.
    pub const ALL: [CopyRule; 5] =
        [CopyRule::UltraEp, CopyRule::MoonEp, CopyRule::Llep, CopyRule::TopoEp, CopyRule::Shadow];

    /// Returns the name in tables and documents.
    pub fn name(self) -> &'static str {
        match self {
            CopyRule::UltraEp => "ultraep",
            CopyRule::MoonEp => "moonep",
            CopyRule::Llep => "llep",
            CopyRule::TopoEp => "topoep",
            CopyRule::Shadow => "shadow",
        }
    }

    /// Returns the pieces that the rule puts on other ranks. One piece is one copy.
    pub fn plan(self, input: RuleInput<'_>) -> Vec<CopiedPiece> {
        match self {
            CopyRule::UltraEp => plan_ultraep(input),
            CopyRule::MoonEp => plan_moonep(input),
            CopyRule::Llep => plan_llep(input),
            CopyRule::TopoEp => plan_topoep(input),
            CopyRule::Shadow => plan_shadow(input),
        }
    }
}

impl<'a> RuleInput<'a> {
    /// Returns the input of the rules' defaults: UltraEP starts 1 % above the mean.
    pub fn new(loads: &'a [u32], ranks: usize, slots: usize) -> RuleInput<'a> {
        let threshold = (f64::from(mean_load(loads, ranks)) * 1.01).ceil() as u32;
        RuleInput { loads, ranks, slots, threshold }
    }

    /// Returns the home of an item.
    pub fn home(&self, item: usize) -> usize {
        item / (self.loads.len() / self.ranks).max(1)
    }

    fn items_of(&self, rank: usize) -> std::ops::Range<usize> {
        let own = (self.loads.len() / self.ranks).max(1);
        rank * own..(rank + 1) * own
    }

    /// Returns the load of every rank at home.
    pub fn home_loads(&self) -> Vec<u32> {
        (0..self.ranks).map(|rank| self.loads[self.items_of(rank)].iter().sum()).collect()
    }

    /// Returns the load of every rank when pieces are served elsewhere.
    pub fn loads_with(&self, pieces: &[CopiedPiece]) -> Vec<u32> {
        let mut loads = self.home_loads();
        for piece in pieces {
            loads[self.home(piece.item)] -= piece.tokens;
            loads[piece.rank] += piece.tokens;
        }
        loads
    }

    fn mean(&self) -> u32 {
        mean_load(self.loads, self.ranks)
    }
}

/// Returns the mean load of a rank, rounded up.
pub fn mean_load(loads: &[u32], ranks: usize) -> u32 {
    let total: u64 = loads.iter().map(|&load| u64::from(load)).sum();
    total.div_ceil(ranks.max(1) as u64) as u32
}

/// Copies the heaviest items of the heaviest ranks into the largest rooms, below a threshold.
fn plan_ultraep(input: RuleInput<'_>) -> Vec<CopiedPiece> {
    let loads = input.home_loads();
    let highest = loads.iter().copied().max().unwrap_or(0);
    let mean = input.mean();
    let mut threshold = input.threshold;
    for _ in 0..3 {
        if let Some(plan) = build_ultraep(input, &loads, threshold, None) {
            return plan;
        }
        threshold = (threshold + highest.div_ceil(100).max(1)).min(highest);
    }
    let (mut low, mut high) = (mean, highest);
    while low < high {
        let middle = low + (high - low) / 2;
        if build_ultraep(input, &loads, middle, Some(1024)).is_some() {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    build_ultraep(input, &loads, low, Some(1024)).unwrap_or_default()
}

/// Builds UltraEP's plan below a threshold. Without `least`, a copy carries at least the need divided by the
/// number of ranks that could take it. Every home keeps a token.
fn build_ultraep(
    input: RuleInput<'_>,
    loads: &[u32],
    threshold: u32,
    least: Option<u32>,
) -> Option<Vec<CopiedPiece>> {
    let mut room: Vec<u32> = loads.iter().map(|&load| threshold.saturating_sub(load)).collect();
    let excess = |rank: usize| loads[rank].saturating_sub(threshold);
    let sum = |values: &mut dyn Iterator<Item = u32>| values.map(u64::from).sum::<u64>();
    if sum(&mut (0..loads.len()).map(excess)) > sum(&mut room.iter().copied()) {
        return None;
    }
    let (mut used, mut plan) = (vec![0; input.ranks], vec![]);
    let mut order: Vec<usize> = (0..input.ranks).collect();
    order.sort_by_key(|&rank| (std::cmp::Reverse(loads[rank]), rank));
    for from in order {
        let mut need = excess(from);
        let mut items: Vec<usize> = input.items_of(from).collect();
        items.sort_by_key(|&item| (std::cmp::Reverse(input.loads[item]), item));
        for item in items {
            let mut available = input.loads[item].saturating_sub(1);
            let first = plan.len();
            while need > 0 && available > 0 {
                let free = |rank: usize, plan: &[CopiedPiece]| {
                    rank != from
                        && room[rank] > 0
                        && used[rank] < input.slots
                        && plan[first..].iter().all(|piece| piece.rank != rank)
                };
                let ranks: Vec<usize> = (0..input.ranks).filter(|&rank| free(rank, &plan)).collect();
                let floor = least.unwrap_or_else(|| need.div_ceil(ranks.len().max(1) as u32).max(1));
                let fits = |&&rank: &&usize| need.min(room[rank]).min(available) >= floor;
                let best =
                    ranks.iter().filter(fits).max_by_key(|&&rank| (room[rank], std::cmp::Reverse(rank)));
                let Some(&rank) = best else { break };
                let tokens = need.min(room[rank]).min(available);
                plan.push(CopiedPiece { item, rank, tokens });
                (room[rank], used[rank]) = (room[rank] - tokens, used[rank] + 1);
                (need, available) = (need - tokens, available - tokens);
            }
            if need == 0 {
                break;
            }
        }
        if need > 0 {
            return None;
        }
    }
    Some(plan)
}

/// Fills the emptiest rank from the most overloaded group until every rank has the mean.
fn plan_moonep(input: RuleInput<'_>) -> Vec<CopiedPiece> {
    let mean = i64::from(input.mean());
    let mut balance: Vec<i64> = input.home_loads().iter().map(|&load| i64::from(load) - mean).collect();
    let mut quotas: Vec<Vec<i64>> = vec![vec![0; input.ranks]; input.ranks];
    let first_max = |values: &[i64]| (0..values.len()).max_by_key(|&at| (values[at], std::cmp::Reverse(at)));
    loop {
        let Some(from) = first_max(&balance) else { return vec![] };
        let Some(to) = (0..balance.len()).min_by_key(|&at| (balance[at], at)) else { return vec![] };
        if balance[from] <= 0 || balance[to] >= 0 {
            break;
        }
        // The mean is rounded up, so the last receiver may have more room than is needed.
        let moved = (-balance[to]).min(balance[from].max(-balance[to]));
        quotas[from][to] = moved;
        balance[from] -= moved;
        balance[to] = 0;
    }
    let mut plan: Vec<CopiedPiece> = vec![];
    for (from, quotas) in quotas.iter_mut().enumerate() {
        let items = input.items_of(from);
        let mut left: Vec<i64> = input.loads[items.clone()].iter().map(|&load| i64::from(load)).collect();
        while let Some(to) = first_max(quotas).filter(|&to| quotas[to] > 0) {
            let Some(own) = first_max(&left).filter(|&own| left[own] > 0) else { break };
            let taken = left[own].min(quotas[to]);
            (left[own], quotas[to]) = (left[own] - taken, quotas[to] - taken);
            let item = items.start + own;
            match plan.iter_mut().find(|piece| piece.item == item && piece.rank == to) {
                Some(piece) => piece.tokens += taken as u32,
                None => plan.push(CopiedPiece { item, rank: to, tokens: taken as u32 }),
            }
        }
    }
    plan
}

/// Assigns items in descending order of load: home takes what fits, the least loaded ranks take the rest.
fn plan_llep(input: RuleInput<'_>) -> Vec<CopiedPiece> {
    const LEAST_PIECE: u32 = 1024;
    let total: u64 = input.loads.iter().map(|&load| u64::from(load)).sum();
    let balanced = total / input.ranks as u64;
    let homes = input.home_loads();
    // Plans are skipped below this ratio of the busiest rank to the mean.
    let highest = homes.iter().copied().max().unwrap_or(0);
    if u64::from(highest) * 10 * (input.ranks as u64) < 13 * total {
        return vec![];
    }
    let most = if balanced > 0 { (1.1 * balanced as f64) as i64 } else { total as i64 }.max(1);
    // Assigned tokens and those of own items that are still to come.
    let mut loads: Vec<i64> = homes.iter().map(|&load| i64::from(load)).collect();
    let mut order: Vec<usize> = (0..input.loads.len()).filter(|&item| input.loads[item] > 0).collect();
    order.sort_by_key(|&item| std::cmp::Reverse(input.loads[item]));
    let mut plan = vec![];
    for item in order {
        let home = input.home(item);
        let tokens = i64::from(input.loads[item]);
        loads[home] -= tokens;
        let kept = tokens.min((most - loads[home]).max(0));
        loads[home] += kept;
        let mut left = tokens - kept;
        let mut tried = vec![];
        while left > 0 {
            let others = (0..input.ranks).filter(|&rank| rank != home && !tried.contains(&rank));
            let mut others: Vec<usize> = others.collect();
            others.sort_by_key(|&rank| loads[rank]);
            let takes = |&&rank: &&usize| {
                let piece = left.min(most - loads[rank]);
                piece > 0 && (piece >= i64::from(LEAST_PIECE) || piece == left)
            };
            let (rank, piece) = match others.iter().find(takes) {
                Some(&rank) => (rank, left.min(most - loads[rank])),
                None => match (0..input.ranks).filter(|&rank| rank != home).min_by_key(|&rank| loads[rank]) {
                    Some(rank) => (rank, left),
                    None => break,
                },
            };
            tried.push(rank);
            loads[rank] += piece;
            left -= piece;
            match plan.iter_mut().find(|known: &&mut CopiedPiece| known.item == item && known.rank == rank) {
                Some(known) => known.tokens += piece as u32,
                None => plan.push(CopiedPiece { item, rank, tokens: piece as u32 }),
            }
        }
    }
    plan
}

/// Moves half of the gap between the busiest rank and the least loaded one with an open slot, repeatedly.
fn plan_topoep(input: RuleInput<'_>) -> Vec<CopiedPiece> {
    let mut loads = input.home_loads();
    let mut left = input.loads.to_vec();
    let (mut used, mut plan): (Vec<usize>, Vec<CopiedPiece>) = (vec![0; input.ranks], vec![]);
    loop {
        let Some(from) = (0..input.ranks).max_by_key(|&rank| (loads[rank], std::cmp::Reverse(rank))) else {
            return plan;
        };
        let items = input.items_of(from);
        let Some(item) = items.max_by_key(|&item| (left[item], std::cmp::Reverse(item))) else { return plan };
        let known = |rank: usize| plan.iter().any(|piece| piece.item == item && piece.rank == rank);
        let open = (0..input.ranks).filter(|&rank| rank != from && (known(rank) || used[rank] < input.slots));
        let Some(to) = open.min_by_key(|&rank| (loads[rank], rank)) else { return plan };
        let tokens = (loads[from].saturating_sub(loads[to]) / 2).min(left[item]);
        if tokens == 0 {
            return plan;
        }
        (loads[from], loads[to], left[item]) =
            (loads[from] - tokens, loads[to] + tokens, left[item] - tokens);
        if let Some(piece) = plan.iter_mut().find(|piece| piece.item == item && piece.rank == to) {
            piece.tokens += tokens;
        } else {
            used[to] += 1;
            plan.push(CopiedPiece { item, rank: to, tokens });
        }
    }
}

/// Copies the heaviest items to all ranks while that lowers the peak and slots are left. Every rank then
/// serves its own tokens, an even share.
fn plan_shadow(input: RuleInput<'_>) -> Vec<CopiedPiece> {
    let mut order: Vec<usize> = (0..input.loads.len()).collect();
    order.sort_by_key(|&item| (std::cmp::Reverse(input.loads[item]), item));
    let mut plan = vec![];
    let peak = |plan: &[CopiedPiece]| input.loads_with(plan).into_iter().max().unwrap_or(0);
    for item in order.into_iter().take(input.slots) {
        let mut more = plan.clone();
        for rank in (0..input.ranks).filter(|&rank| rank != input.home(item)) {
            let tokens = input.loads[item] / input.ranks as u32;
            more.push(CopiedPiece { item, rank, tokens });
        }
        if peak(&more) >= peak(&plan) {
            break;
        }
        plan = more;
    }
    plan
}
