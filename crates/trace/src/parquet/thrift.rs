//! Walks structs in Thrift's compact protocol without building them.
//!
//! In: bytes and the fields known beforehand. Out: the length of the struct, and its integers
//! to whoever asked. A guard in front of a real parser: what passes takes that parser a time
//! and memory in proportion to the bytes. So every element of a container has to take a byte at
//! least, nesting is bounded, and a known field must be of its type, as a parser that takes
//! that for granted would go on at another place than this walk.
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

/// Structs and containers within each other.
const DEPTH: usize = 32;

/// What a known field is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Bool,
    Byte,
    /// Of 16, 32 or 64 bits: all are written alike.
    Int,
    Double,
    Bytes,
    List(&'static Shape),
    Struct(Fields),
}

/// Known fields of a struct; others may be there, of any type.
pub(super) type Fields = &'static [(i16, Shape)];

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Bool => "a boolean",
            Self::Byte => "a byte",
            Self::Int => "an integer",
            Self::Double => "a double",
            Self::Bytes => "a string",
            Self::List(_) => "a list",
            Self::Struct(_) => "a struct",
        }
    }

    fn fits(self, wire: u8) -> bool {
        match self {
            Self::Bool => matches!(wire, 1 | 2),
            Self::Byte => wire == 3,
            Self::Int => matches!(wire, 4..=6),
            Self::Double => wire == 7,
            Self::Bytes => wire == 8,
            Self::List(_) => wire == 9,
            Self::Struct(_) => wire == 12,
        }
    }
}

/// Why a walk ended early.
#[derive(Debug)]
pub(super) struct Flaw {
    /// Position in the bytes.
    pub(super) at: usize,
    pub(super) found: String,
    pub(super) expected: String,
    /// More bytes might mend it.
    pub(super) short: bool,
}

/// Walks one struct from the first byte on; its length. `seen` gets each integer with the ids
/// of the fields that lead to it.
pub(super) fn walk(bytes: &[u8], fields: Fields, seen: &mut dyn FnMut(&[i16], i64)) -> Result<usize, Flaw> {
    let mut walk = Walk { bytes, at: 0, path: Vec::new(), seen };
    walk.fields(fields, DEPTH)?;
    Ok(walk.at)
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    path: Vec<i16>,
    seen: &'a mut dyn FnMut(&[i16], i64),
}

impl Walk<'_> {
    fn flaw<T>(&self, found: impl Into<String>, expected: impl Into<String>) -> Result<T, Flaw> {
        Err(Flaw { at: self.at, found: found.into(), expected: expected.into(), short: false })
    }

    fn take(&mut self, count: u64, what: &str) -> Result<(), Flaw> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left => {
                self.at += count;
                Ok(())
            }
            _ => Err(Flaw {
                at: self.at,
                found: format!("{count} bytes of {what}"),
                expected: format!("at most the {left} bytes left"),
                short: true,
            }),
        }
    }

    fn byte(&mut self) -> Result<u8, Flaw> {
        let at = self.at;
        self.take(1, "metadata")?;
        Ok(self.bytes[at])
    }

    fn varint(&mut self) -> Result<u64, Flaw> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.flaw("an integer of more than 10 bytes", "an integer of 64 bits")
    }

    fn int(&mut self) -> Result<i64, Flaw> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Fields up to the end of the struct.
    fn fields(&mut self, known: Fields, depth: usize) -> Result<(), Flaw> {
        let mut id = 0i16;
        loop {
            let head = self.byte()?;
            let wire = head & 0xf;
            if wire == 0 {
                return Ok(());
            }
            let next = if head >> 4 == 0 { self.int()? } else { i64::from(id) + i64::from(head >> 4) };
            let Ok(next) = i16::try_from(next) else {
                return self.flaw(format!("field {next}"), "a field number of 16 bits");
            };
            id = next;
            let shape = known.iter().find(|(known, _)| *known == id).map(|(_, shape)| *shape);
            if let Some(shape) = shape
                && !shape.fits(wire)
            {
                return self
                    .flaw(format!("field {id} of type {wire}"), format!("{} in that field", shape.name()));
            }
            // A boolean is part of the type.
            if !matches!(wire, 1 | 2) {
                self.path.push(id);
                self.value(wire, shape, depth - 1)?;
                self.path.pop();
            }
        }
    }

    fn value(&mut self, wire: u8, shape: Option<Shape>, depth: usize) -> Result<(), Flaw> {
        if depth == 0 {
            return self
                .flaw(format!("structs and lists nested more than {DEPTH} deep"), "metadata less deep");
        }
        match wire {
            3 => self.take(1, "metadata"),
            4..=6 => {
                let value = self.int()?;
                (self.seen)(&self.path, value);
                Ok(())
            }
            7 => self.take(8, "metadata"),
            8 => {
                let length = self.varint()?;
                self.take(length, "text")
            }
            9 | 10 => self.list(shape, depth),
            11 => self.map(depth),
            12 => {
                let fields = if let Some(Shape::Struct(fields)) = shape { fields } else { &[] };
                self.fields(fields, depth)
            }
            13 => self.take(16, "metadata"),
            _ => self.flaw(format!("type {wire}"), "a type of the compact protocol"),
        }
    }

    fn list(&mut self, shape: Option<Shape>, depth: usize) -> Result<(), Flaw> {
        let head = self.byte()?;
        let wire = head & 0xf;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        self.room(count, &[wire])?;
        let element = if let Some(Shape::List(element)) = shape { Some(*element) } else { None };
        if let Some(element) = element
            && count > 0
            && !element.fits(wire)
        {
            return self
                .flaw(format!("a list of type {wire}"), format!("{} in each element", element.name()));
        }
        for _ in 0..count {
            self.value(wire, element, depth - 1)?;
        }
        Ok(())
    }

    fn map(&mut self, depth: usize) -> Result<(), Flaw> {
        let count = self.varint()?;
        if count == 0 {
            return Ok(());
        }
        let wires = self.byte()?;
        self.room(count, &[wires >> 4, wires & 0xf])?;
        for _ in 0..count {
            self.value(wires >> 4, None, depth - 1)?;
            self.value(wires & 0xf, None, depth - 1)?;
        }
        Ok(())
    }

    /// Sees that as many elements can be there: each takes a byte, booleans would take none.
    fn room(&self, count: u64, wires: &[u8]) -> Result<(), Flaw> {
        if count > 0 && wires.iter().any(|wire| matches!(wire, 1 | 2)) {
            return self.flaw(format!("a container of {count} booleans"), "metadata of Parquet, without any");
        }
        let left = self.bytes.len() - self.at;
        if count.saturating_mul(wires.len() as u64) > left as u64 {
            return Err(Flaw {
                at: self.at,
                found: format!("a container of {count} elements"),
                expected: format!("one byte for each at least, of {left} bytes left"),
                short: true,
            });
        }
        Ok(())
    }
}
