//! The parser of the JSON body of posted loads, which allocates no list per row.
//!
//! Parsing takes at most [`MEMORY_PER_BODY_BYTE`] bytes of memory per byte of the body, for any content. The
//! numbers of a step go into one list, and a list above its limit is an error.

use super::loads::{Loads, LoadsError, MAX_POSTED_STEPS, StepLoads};
use crate::Phase;
use evenkeel::trace::{MAX_EXPERTS, MAX_LAYERS};
use serde::de::{DeserializeSeed, Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// The most bytes of memory per byte of a body: the body, a step's counts during parsing, and the counts of
/// all steps.
pub(crate) const MEMORY_PER_BODY_BYTE: usize = 6;

/// The body, as [`crate::LoadsBody`] describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParsedBody {
    #[serde(default)]
    phase: Phase,
    #[serde(default)]
    layers: Option<LayerIds>,
    steps: StepList,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParsedStep {
    step: u64,
    counts: CountRows,
}

struct LayerIds(Vec<u32>);

struct StepList(Vec<ParsedStep>);

/// The counts of a step.
struct CountRows {
    counts: std::sync::Arc<[u32]>,
    length: usize,
    width: usize,
    /// The first row whose length differs from that of the first row, and its length.
    uneven: Option<(usize, usize)>,
}

/// A reader of a list. It keeps `most` numbers and skips the rest.
struct NumberList<'a> {
    into: &'a mut Vec<u32>,
    most: usize,
    of: &'static str,
}

impl<'de> DeserializeSeed<'de> for NumberList<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for NumberList<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of numbers below 2^32")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
        let mut length = 0;
        while let Some(number) = list.next_element()? {
            if length == self.most {
                return Err(A::Error::custom(format!("more than {} {}", self.most, self.of)));
            }
            self.into.push(number);
            length += 1;
        }
        Ok(length)
    }
}

impl<'de> Deserialize<'de> for LayerIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut layers = Vec::new();
        NumberList { into: &mut layers, most: MAX_LAYERS, of: "layers" }.deserialize(deserializer)?;
        Ok(Self(layers))
    }
}

impl<'de> Deserialize<'de> for StepList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = StepList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of steps")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<StepList, A::Error> {
                let mut steps = Vec::new();
                while let Some(step) = list.next_element()? {
                    if steps.len() == MAX_POSTED_STEPS {
                        return Err(A::Error::custom(format!("more than {MAX_POSTED_STEPS} steps")));
                    }
                    steps.push(step);
                }
                Ok(StepList(steps))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

impl<'de> Deserialize<'de> for CountRows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = CountRows;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of rows of counts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<CountRows, A::Error> {
                let (mut counts, mut rows, mut width, mut uneven) = (Vec::new(), 0, 0, None);
                while let Some(length) = list.next_element_seed(NumberList {
                    into: &mut counts,
                    most: MAX_EXPERTS,
                    of: "experts",
                })? {
                    if rows == MAX_LAYERS {
                        return Err(A::Error::custom(format!("more than {MAX_LAYERS} layers")));
                    }
                    if rows == 0 {
                        width = length;
                    }
                    if length != width {
                        uneven = Some((rows, length));
                        // The error is about this row, so the rest is skipped.
                        while list.next_element::<IgnoredAny>()?.is_some() {}
                        break;
                    }
                    rows += 1;
                }
                Ok(CountRows { counts: counts.into(), length: rows, width, uneven })
            }
        }
        deserializer.deserialize_seq(List)
    }
}

impl Loads {
    /// Parses and checks a JSON body.
    ///
    /// # Errors
    /// [`LoadsError`] names the invalid key, or the line and column of text that is no JSON.
    pub fn from_json(body: &[u8]) -> Result<Self, LoadsError> {
        let body: ParsedBody = serde_json::from_slice(body).map_err(|error| {
            let at = format!("line {}, column {}", error.line(), error.column());
            LoadsError::new(at, error.to_string(), "{\"steps\": [{\"step\": 0, \"counts\": [[..], ..]}, ..]}")
        })?;
        let steps = body.steps.0;
        let first = steps.first().ok_or_else(|| LoadsError::new("steps", "no step", "at least one"))?;
        let experts = first.counts.width;
        let layers = body.layers.map_or_else(|| (0..first.counts.length as u32).collect(), |layers| layers.0);
        let mut all = Vec::with_capacity(steps.len());
        for (at, ParsedStep { step, counts }) in steps.into_iter().enumerate() {
            let wrong = |row: Option<usize>, found: usize, of: &str, expected: usize| {
                let row = row.map_or(String::new(), |row| format!("[{row}]"));
                let key = format!("steps[{at}].counts{row}");
                Err(LoadsError::new(key, format!("{found} {of}"), expected.to_string()))
            };
            match counts.uneven {
                _ if counts.length > 0 && counts.width != experts => {
                    return wrong(Some(0), counts.width, "experts", experts);
                }
                Some((row, found)) => return wrong(Some(row), found, "experts", experts),
                None if counts.length != layers.len() => {
                    return wrong(None, counts.length, "layers", layers.len());
                }
                None => all.push(StepLoads { id: step, counts: counts.counts }),
            }
        }
        Self { phase: body.phase, layers, experts, steps: all }.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_without_end_end_the_reading() {
        let message = |body: &str| Loads::from_json(body.as_bytes()).unwrap_err().to_string();
        let many = |part: &str, times: usize| vec![part; times].join(",");
        let steps = |counts: &str| format!(r#"{{"steps": [{{"step": 1, "counts": {counts}}}]}}"#);
        assert!(message(&steps(&format!("[{}]", many("[1]", 4097)))).contains("more than 4096 layers"));
        assert!(message(&steps(&format!("[[{}]]", many("1", 65_537)))).contains("more than 65536 experts"));
        assert!(message(&steps(&format!("[{}]", many("[]", 4097)))).contains("more than 4096 layers"));
        let layers = format!(r#"{{"layers": [{}], "steps": []}}"#, many("1", 4097));
        assert!(message(&layers).contains("more than 4096 layers"));
        let one = r#"{"step": 1, "counts": [[1]]}"#;
        assert!(message(&format!(r#"{{"steps": [{}]}}"#, many(one, 4097))).contains("more than 4096 steps"));
    }

    #[test]
    fn uneven_rows_and_steps_are_named() {
        let message = |steps: &str| {
            Loads::from_json(format!(r#"{{"steps": [{steps}]}}"#).as_bytes()).unwrap_err().to_string()
        };
        let step = |id: u32, counts: &str| format!(r#"{{"step": {id}, "counts": {counts}}}"#);
        let first = step(1, "[[1, 2], [3, 4]]");
        for (second, part) in [
            ("[[1, 2]]", "steps[1].counts: 1 layers, expected 2"),
            ("[[1], [2]]", "steps[1].counts[0]: 1 experts, expected 2"),
            ("[[1, 2], [3, 4, 5], [6]]", "steps[1].counts[1]: 3 experts, expected 2"),
            ("[]", "steps[1].counts: 0 layers, expected 2"),
        ] {
            let message = message(&format!("{first}, {}", step(2, second)));
            assert!(message.contains(part), "{second}: {message}");
        }
    }
}
