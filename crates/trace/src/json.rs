//! Counts as JSON, `{"logical_count": ...}`: `[layers, experts]`, or 3-D with steps.
//!
//! Input is a stream of JSON text. Output is the same as for [`super::sglang`]'s `logical_count`. Numbers go
//! directly into one flat array, and other keys are ignored. Source: SGLang's `--init-expert-location`
//! statistics.

use super::input::InputFile;
use super::{Location, TraceError, sglang};
use crate::ReadOptions;
use evenkeel::trace::build::Sink;
use evenkeel::trace::build::float_to_integer;
use evenkeel::trace::build::invalid_content;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::BufReader;

/// The deepest nesting of counts.
const MAX_DEPTH: usize = 3;

/// Reads one file into the current source.
pub(crate) fn read(
    input: &InputFile<'_>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let mut json =
        serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 18, input.open_text()?));
    let mut flat = FlatCounts {
        shape: [None; MAX_DEPTH],
        depth: 0,
        data: Vec::new(),
        limit: (options.memory / 8) as usize,
    };
    let wrong = |error: serde_json::Error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        invalid_content(
            &input.path,
            Location::Line(error.line() as u64),
            message,
            "{\"logical_count\": [[counts]]}",
        )
    };
    let found = RootVisitor(&mut flat).deserialize(&mut json).map_err(wrong)?;
    json.end().map_err(wrong)?;
    if !found {
        return Err(invalid_content(
            &input.path,
            Location::File,
            "no key logical_count",
            "{\"logical_count\": [[counts]]}",
        ));
    }
    let shape: Vec<usize> = flat.shape[..flat.depth].iter().map(|size| size.unwrap_or(0)).collect();
    sglang::push_logical_counts(input, &shape, &flat.data, sink)
}

/// Reads lists of lists of counts. Accepts whole numbers written as `3.0`.
pub(crate) fn counts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u64>>, D::Error> {
    let lists: Vec<Vec<WholeCount>> = serde::Deserialize::deserialize(deserializer)?;
    Ok(lists.into_iter().map(|list| list.into_iter().map(|count| count.0).collect()).collect())
}

/// A non-negative integer.
struct WholeCount(u64);

impl<'de> serde::Deserialize<'de> for WholeCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = WholeCount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count, a whole number from 0")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<WholeCount, E> {
        Ok(WholeCount(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<WholeCount, E> {
        float_to_integer(number)
            .map(WholeCount)
            .ok_or_else(|| E::custom(format!("the number {number}, expected a whole number from 0")))
    }
}

/// Nested lists of numbers, flattened.
struct FlatCounts {
    /// The length of the lists at each depth, known after the first complete one.
    shape: [Option<usize>; MAX_DEPTH],
    /// The depth of the numbers.
    depth: usize,
    data: Vec<u64>,
    /// The most numbers to hold.
    limit: usize,
}

struct RootVisitor<'a>(&'a mut FlatCounts);

impl<'de> DeserializeSeed<'de> for RootVisitor<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RootVisitor<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with key logical_count")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "logical_count" {
                if found {
                    return Err(A::Error::custom("key logical_count twice"));
                }
                map.next_value_seed(NestVisitor { flat: self.0, depth: 0 })?;
                found = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A list or number at a depth.
struct NestVisitor<'a> {
    flat: &'a mut FlatCounts,
    depth: usize,
}

impl NestVisitor<'_> {
    fn push_number<E: Error>(self, number: u64) -> Result<(), E> {
        if self.depth == 0 {
            return Err(E::custom("a number, not a list, in logical_count"));
        }
        if self.flat.data.is_empty() && self.flat.depth == 0 {
            self.flat.depth = self.depth;
        } else if self.flat.depth != self.depth {
            return Err(E::custom("numbers at different depths of logical_count"));
        }
        if self.flat.data.len() >= self.flat.limit {
            return Err(E::custom(
                "more numbers in logical_count than the memory allowed can hold; raise --memory",
            ));
        }
        self.flat.data.push(number);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for NestVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NestVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count from 0 or a list of counts in logical_count")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.push_number(number)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        match float_to_integer(number) {
            Some(number) => self.push_number(number),
            None => Err(E::custom(format!("the number {number} in logical_count"))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if self.depth == MAX_DEPTH {
            return Err(A::Error::custom("more than 3 dimensions in logical_count"));
        }
        let mut length = 0;
        while list.next_element_seed(NestVisitor { flat: &mut *self.flat, depth: self.depth + 1 })?.is_some()
        {
            length += 1;
        }
        match self.flat.shape[self.depth] {
            Some(before) if before != length => Err(A::Error::custom(format!(
                "a list of {length} at depth {} of logical_count, and others of {before}",
                self.depth + 1
            ))),
            _ => {
                self.flat.shape[self.depth] = Some(length);
                Ok(())
            }
        }
    }
}
