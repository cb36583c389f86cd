//! The header of a text table: its position, its columns and their separator.
//!
//! Input is the first bytes of a text. Output is a [`TableHeader`] with the column names as written and the
//! separator: comma, semicolon, tab or bar. Comment lines (`#`) and Excel's `sep=` line may precede it.
//! NumPy's `savetxt` writes the header itself as the last comment.

/// The number of bytes that are searched for a header.
pub(crate) const MAX_HEAD_BYTES: usize = 64 << 10;

/// The separators, the most likely one first.
const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// The first line of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableHeader {
    pub(crate) columns: Vec<String>,
    pub(crate) separator: u8,
    /// The number of lines before the first row, including the header.
    pub(crate) lines: usize,
    /// The number of comment lines among them that are no header.
    pub(crate) comments: usize,
    /// Flag that is set if the header is the last comment.
    pub(crate) in_comment: bool,
}

impl TableHeader {
    /// Finds the header in the first bytes of a text.
    pub(crate) fn from_head(head: &[u8]) -> Option<Self> {
        let mut comment: Option<Self> = None;
        let (mut comments, mut stated) = (0, None);
        for (at, line) in head.split(|&byte| byte == b'\n').enumerate() {
            // Old Macs ended lines with `\r`, so the whole text is one line here. The parser splits it.
            let line = line.split(|&byte| byte == b'\r').next().unwrap_or_default().trim_ascii();
            if line.is_empty() {
                continue;
            }
            if let [b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', separator] = line {
                stated = Some(*separator);
                continue;
            }
            if let Some(text) = line.strip_prefix(b"#") {
                comments += 1;
                comment = Some(Self::split_line(text, stated));
                continue;
            }
            let found = Self { lines: at + 1, comments, ..Self::split_line(line, stated) };
            return Some(match comment {
                Some(header) if !found.is_known() && header.is_known() => {
                    Self { lines: at, comments: comments - 1, in_comment: true, ..header }
                }
                _ => found,
            });
        }
        None
    }

    /// Splits a line at the separator that gives a known header, or else the most columns.
    fn split_line(line: &[u8], stated: Option<u8>) -> Self {
        let split = |separator: u8| Self {
            columns: line
                .split(|&byte| byte == separator)
                .map(|name| String::from_utf8_lossy(name.trim_ascii()).trim_matches('"').trim().to_owned())
                .collect(),
            separator,
            lines: 0,
            comments: 0,
            in_comment: false,
        };
        if let Some(separator) = stated {
            return split(separator);
        }
        let all = SEPARATORS.map(split);
        // Among equally good separators, take the first.
        let rank = |header: &Self| (header.is_known(), header.columns.len());
        all.iter().rev().max_by_key(|header| rank(header)).cloned().unwrap_or_else(|| split(b','))
    }

    fn is_known(&self) -> bool {
        self.is_long_table() || self.is_sglang() || self.is_requests()
    }

    /// Returns whether a column of this name exists, in any case.
    pub(crate) fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.eq_ignore_ascii_case(name))
    }

    /// Returns whether the columns are those of the long table.
    pub(crate) fn is_long_table(&self) -> bool {
        [LAYER_COLUMNS, EXPERT_COLUMNS, TOKEN_COLUMNS]
            .iter()
            .all(|names| names.iter().any(|name| self.has_column(name)))
    }

    /// Returns whether the columns are those of an older SGLang dump: one step, the counts of one rank.
    pub(crate) fn is_sglang(&self) -> bool {
        ["layer_id", "expert_id", "count"].iter().all(|name| self.has_column(name))
            && !self.has_column("step")
    }

    /// Returns whether the columns are those of a table of requests.
    pub(crate) fn is_requests(&self) -> bool {
        self.has_column("start") && self.has_column("tokens")
    }
}

/// Names of the column of layer ids, the preferred one first.
pub(crate) const LAYER_COLUMNS: &[&str] = &["layer", "layer_id"];
/// Names of the column of expert ids.
pub(crate) const EXPERT_COLUMNS: &[&str] = &["expert", "expert_id"];
/// Names of the column of counts.
pub(crate) const TOKEN_COLUMNS: &[&str] = &["tokens", "count"];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::TableHeader;

    #[test]
    fn headers_by_separator_and_comments() {
        for (text, separator, lines, comments) in [
            ("step,layer,expert,tokens\n0,", b',', 1, 0),
            ("Step;Layer;Expert;COUNT\n", b';', 1, 0),
            ("sep=;\r\nlayer;expert;tokens\r\n", b';', 2, 0),
            ("# a, b, c\n\n#\nlayer\texpert\ttokens\n", b'\t', 4, 2),
            ("layer|expert|tokens", b'|', 1, 0),
            ("# run 7\n# step,layer,expert,tokens\n0,0,0,1\n", b',', 2, 1),
        ] {
            let header = TableHeader::from_head(text.as_bytes()).unwrap();
            assert!(header.is_long_table(), "{text}");
            assert_eq!(
                (header.separator, header.lines, header.comments),
                (separator, lines, comments),
                "{text}"
            );
        }
        assert_eq!(TableHeader::from_head(b"a;b;c\n").unwrap().separator, b';');
        assert_eq!(TableHeader::from_head(b"# layer,expert,tokens\n\n"), None);
        assert!(TableHeader::from_head(b"layer_id,expert_id,count\n").unwrap().is_sglang());
        assert!(!TableHeader::from_head(b"step,layer_id,expert_id,count\n").unwrap().is_sglang());
    }
}
