//! `{"logical_count": ...}`: counts as JSON, 2-D `[layers, experts]` or 3-D with steps.
//!
//! In: JSON text, read as a stream. Out: as [`super::sglang`]'s `logical_count`. Numbers go
//! straight into one flat array; other keys are ignored. Source: SGLang's
//! `--init-expert-location` statistics.

use super::error::invalid;
use super::input::Input;
use super::options::ReadOptions;
use super::sink::Sink;
use super::{Place, TraceError, sglang};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::BufReader;

/// Deepest nesting of counts.
const MAX_DEPTH: usize = 3;

/// Reads one file into the current source.
pub(crate) fn read(input: &Input<'_>, options: &ReadOptions, sink: &mut dyn Sink) -> Result<(), TraceError> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 18, input.stream()?));
    let mut flat =
        Flat { shape: [None; MAX_DEPTH], depth: 0, data: Vec::new(), limit: (options.memory / 8) as usize };
    let wrong = |error: serde_json::Error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        invalid(&input.path, Place::Line(error.line() as u64), message, "{\"logical_count\": [[counts]]}")
    };
    let found = Root(&mut flat).deserialize(&mut json).map_err(wrong)?;
    json.end().map_err(wrong)?;
    if !found {
        return Err(invalid(
            &input.path,
            Place::File,
            "no key logical_count",
            "{\"logical_count\": [[counts]]}",
        ));
    }
    let shape: Vec<usize> = flat.shape[..flat.depth].iter().map(|size| size.unwrap_or(0)).collect();
    sglang::logical_counts(input, &shape, &flat.data, sink)
}

/// A nest of lists, flattened.
struct Flat {
    /// Length of the lists at each depth, once one is complete.
    shape: [Option<usize>; MAX_DEPTH],
    /// Depth at which the numbers are.
    depth: usize,
    data: Vec<u64>,
    /// Most numbers held.
    limit: usize,
}

struct Root<'a>(&'a mut Flat);

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_> {
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
                map.next_value_seed(Nest { flat: self.0, depth: 0 })?;
                found = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A list or number at a depth.
struct Nest<'a> {
    flat: &'a mut Flat,
    depth: usize,
}

impl Nest<'_> {
    fn number<E: Error>(self, number: u64) -> Result<(), E> {
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

impl<'de> DeserializeSeed<'de> for Nest<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nest<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count from 0 or a list of counts in logical_count")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.number(number)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        // Whole numbers written as 3.0; 2^53 is where doubles stop being exact.
        if number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number) {
            return self.number(number as u64);
        }
        Err(E::custom(format!("the number {number} in logical_count")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if self.depth == MAX_DEPTH {
            return Err(A::Error::custom("more than 3 dimensions in logical_count"));
        }
        let mut length = 0;
        while list.next_element_seed(Nest { flat: &mut *self.flat, depth: self.depth + 1 })?.is_some() {
            length += 1;
        }
        match self.flat.shape[self.depth] {
            Some(before) if before != length => Err(A::Error::custom(format!(
                "a list of {length} at depth {} of logical_count where others have {before}",
                self.depth + 1
            ))),
            _ => {
                self.flat.shape[self.depth] = Some(length);
                Ok(())
            }
        }
    }
}
