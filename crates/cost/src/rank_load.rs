//! The load of one rank, reduced to the numbers on which kernel times depend.
//!
//! In: rows per expert, and the tokens that enter the layer. Out: active experts, rows, and rows rounded up
//! to tiles of several heights.

/// Tile heights of grouped matrix multiplications, in rows.
pub(crate) const TILE_ROWS: [u64; 6] = [8, 16, 32, 64, 128, 256];

/// Load of one rank's experts in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RankLoad {
    /// Tokens that enter the layer on this rank.
    pub tokens: u64,
    /// Experts with at least one row.
    pub active: u64,
    /// Rows of all local experts.
    pub rows: u64,
    /// Tiles of 8, 16, 32, 64, 128 and 256 rows.
    pub(crate) tiles: [u64; TILE_ROWS.len()],
    /// Sum over the active experts of their rows, or 128 if they have fewer.
    pub rows_from_128: u64,
}

impl RankLoad {
    /// Sums up the rows of a rank's experts. `tokens` enter the layer.
    pub fn from_rows(rows: impl IntoIterator<Item = u64>, tokens: u64) -> Self {
        let mut load = RankLoad { tokens, ..RankLoad::default() };
        for count in rows.into_iter().filter(|&count| count > 0) {
            load.active += 1;
            load.rows = load.rows.saturating_add(count);
            load.rows_from_128 = load.rows_from_128.saturating_add(count.max(128));
            for (tiles, height) in load.tiles.iter_mut().zip(TILE_ROWS) {
                *tiles = tiles.saturating_add(count.div_ceil(height));
            }
        }
        load
    }

    /// Returns the tiles of a height in [`TILE_ROWS`], and none of any other height.
    pub(crate) fn tiles_of(&self, height: u64) -> u64 {
        TILE_ROWS.iter().position(|&rows| rows == height).map_or(0, |at| self.tiles[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_adds_up_by_hand() {
        let load = RankLoad::from_rows([0, 1, 130, 16], 200);
        let by_hand = RankLoad {
            tokens: 200,
            active: 3,
            rows: 147,
            tiles: [1 + 17 + 2, 1 + 9 + 1, 1 + 5 + 1, 1 + 3 + 1, 1 + 2 + 1, 3],
            rows_from_128: 128 + 130 + 128,
        };
        assert_eq!(load, by_hand);
        assert_eq!((load.tiles_of(64), load.tiles_of(7)), (5, 0));
    }
}
