//! The assignment problem: a perfect matching of rows and columns of a square matrix with the greatest total
//! worth.
//!
//! In: worths `[n][n]`. Out: the column of every row. The method is shortest augmenting paths with
//! potentials, O(n³), in integers (Kuhn 1955; Jonker and Volgenant, Computing 38, 1987). Ties are broken in a
//! fixed order.

/// Returns the column of each row in a matching with the greatest sum of `worth(row, column)`.
///
/// Worths may be negative. A forbidden pair is one of very small worth. Sums stay far from overflow while
/// worths are below 2⁴⁰.
pub(super) fn match_rows(n: usize, worth: impl Fn(usize, usize) -> i64) -> Vec<usize> {
    // Rows and columns count from 1. Column 0 stands for "no column yet".
    let (mut row_price, mut column_price) = (vec![0i64; n + 1], vec![0i64; n + 1]);
    let mut row_of = vec![0usize; n + 1];
    let mut back = vec![0usize; n + 1];
    for row in 1..=n {
        row_of[0] = row;
        let mut column = 0;
        let mut slack = vec![i64::MAX; n + 1];
        let mut seen = vec![false; n + 1];
        loop {
            seen[column] = true;
            let here = row_of[column];
            let (mut least, mut next) = (i64::MAX, 0);
            for j in 1..=n {
                if seen[j] {
                    continue;
                }
                let reduced = -worth(here - 1, j - 1) - row_price[here] - column_price[j];
                if reduced < slack[j] {
                    slack[j] = reduced;
                    back[j] = column;
                }
                if slack[j] < least {
                    least = slack[j];
                    next = j;
                }
            }
            for j in 0..=n {
                if seen[j] {
                    row_price[row_of[j]] += least;
                    column_price[j] -= least;
                } else if slack[j] < i64::MAX {
                    slack[j] -= least;
                }
            }
            column = next;
            if row_of[column] == 0 {
                break;
            }
        }
        while column != 0 {
            row_of[column] = row_of[back[column]];
            column = back[column];
        }
    }
    let mut columns = vec![0; n];
    for column in 1..=n {
        columns[row_of[column] - 1] = column - 1;
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn best_by_trying(worth: &[Vec<i64>], row: usize, free: &mut Vec<bool>) -> i64 {
        if row == worth.len() {
            return 0;
        }
        let mut best = i64::MIN;
        for column in 0..worth.len() {
            if free[column] {
                free[column] = false;
                best = best.max(worth[row][column] + best_by_trying(worth, row + 1, free));
                free[column] = true;
            }
        }
        best
    }

    proptest! {
        #[test]
        fn no_other_matching_is_worth_more(
            worth in (1usize..7).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(-9i64..10, n), n))
        ) {
            let n = worth.len();
            let columns = match_rows(n, |i, j| worth[i][j]);
            let mut seen = columns.clone();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
            let sum: i64 = columns.iter().enumerate().map(|(i, &j)| worth[i][j]).sum();
            prop_assert_eq!(sum, best_by_trying(&worth, 0, &mut vec![true; n]));
        }
    }
}
