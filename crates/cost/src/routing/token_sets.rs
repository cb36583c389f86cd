//! Experts of every token, as runs of tokens with the same experts.
//!
//! In: rows per expert, or the balanced pattern. Out: [`TokenRun`]s. The collectors lay the rows of the
//! experts, fullest first, into a matrix of `top_k` columns and `tokens` rows, column by column. A token's
//! experts are its row. Group-limited routing then restricts them as DeepSeek-V3's router does.

use super::RoutingShape;

/// Tokens with the same experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenRun {
    pub(super) tokens: u64,
    pub(super) experts: Vec<u32>,
}

/// Groups of experts in DeepSeek-V3's router, and the number of groups that a token may use.
const GROUPS: usize = 8;
const GROUPS_PER_TOKEN: usize = 4;

/// Returns the runs of the balanced pattern. Token `i` has the experts `i + j * stride`.
pub(super) fn balanced_runs(shape: &RoutingShape) -> Vec<TokenRun> {
    let (tokens, experts, top_k) = (shape.tokens, shape.experts.max(1), shape.top_k.max(1));
    let stride = experts.div_ceil(top_k);
    if tokens < stride {
        let run = |i| {
            let experts = (0..top_k).map(|j| ((i * stride / tokens + j * stride) % experts) as u32).collect();
            TokenRun { tokens: 1, experts }
        };
        return (0..tokens).map(run).collect();
    }
    // The pattern repeats after `experts` tokens.
    let run = |i: u64| TokenRun {
        tokens: tokens / experts + u64::from(i < tokens % experts),
        experts: (0..top_k).map(|j| ((i + j * stride) % experts) as u32).collect(),
    };
    (0..experts.min(tokens)).map(run).collect()
}

/// Returns the runs of rows per expert, laid out column by column.
pub(super) fn runs_of_counts(counts: &[u64], shape: &RoutingShape) -> Vec<TokenRun> {
    let mut order: Vec<usize> = (0..counts.len()).filter(|&expert| counts[expert] > 0).collect();
    order.sort_by(|&a, &b| counts[b].cmp(&counts[a]).then(a.cmp(&b)));
    let ends: Vec<u64> = order
        .iter()
        .scan(0, |end, &expert| {
            *end += counts[expert];
            Some(*end)
        })
        .collect();
    let starts = ends.iter().zip(&order).map(|(end, &expert)| (end - counts[expert]) % shape.tokens.max(1));
    let mut cuts: Vec<u64> = starts.chain([0, shape.tokens]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let run = |range: &[u64]| {
        let expert = |column: u64| {
            let row = column * shape.tokens + range[0];
            let at = ends.partition_point(|&end| end <= row);
            order.get(at).map(|&expert| expert as u32)
        };
        TokenRun { tokens: range[1] - range[0], experts: (0..shape.top_k).filter_map(expert).collect() }
    };
    cuts.windows(2).map(run).collect()
}

/// Restricts runs as a router with groups does. The groups with the most chosen experts stay, of which two
/// count at most; the lowest index wins ties. Missing choices go to the lowest experts of these groups.
pub(super) fn limit_groups(runs: &mut [TokenRun], shape: &RoutingShape) {
    let experts = shape.experts as usize;
    let size = (experts / GROUPS).max(1);
    for run in runs {
        let wanted = run.experts.len();
        let mut chosen = vec![false; experts];
        run.experts.iter().for_each(|&expert| chosen[expert as usize] = true);
        let score = |group: usize| {
            chosen.iter().skip(group * size).take(size).filter(|&&chosen| chosen).count().min(2)
        };
        let mut groups: Vec<usize> = (0..GROUPS).collect();
        groups.sort_by_key(|&group| (std::cmp::Reverse(score(group)), group));
        let allowed = |expert: usize| groups[..GROUPS_PER_TOKEN].contains(&(expert / size));
        let mut ranked: Vec<usize> = (0..experts).collect();
        ranked.sort_by_key(|&expert| match (allowed(expert), chosen[expert]) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        });
        run.experts = ranked.into_iter().take(wanted).map(|expert| expert as u32).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_filled_by_hand() {
        let shape = RoutingShape { tokens: 3, experts: 4, top_k: 2, ranks: 1 };
        // Expert 2 fills rows 0 to 2 of column 0; experts 0, 1 and 3 follow in column 1.
        let runs = runs_of_counts(&[1, 1, 3, 1], &shape);
        let experts: Vec<_> = runs.iter().map(|run| (run.tokens, run.experts.clone())).collect();
        assert_eq!(experts, [(1, vec![2, 0]), (1, vec![2, 1]), (1, vec![2, 3])]);
    }

    #[test]
    fn groups_keep_the_lowest_of_equals() {
        // One expert in each of the 8 groups: groups 0 to 3 stay, and the lowest other experts fill up.
        let shape = RoutingShape { tokens: 1, experts: 256, top_k: 8, ranks: 1 };
        let mut runs = balanced_runs(&shape);
        assert_eq!(runs[0].experts, [0, 32, 64, 96, 128, 160, 192, 224]);
        limit_groups(&mut runs, &shape);
        assert_eq!(runs[0].experts, [0, 32, 64, 96, 1, 2, 3, 4]);
    }
}
