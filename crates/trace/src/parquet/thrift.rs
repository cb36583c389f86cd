//! A walk over structs in Thrift's compact protocol that builds no values.
//!
//! Input is bytes and the known fields. Output is the length of the struct, and its integers through a
//! callback. The walk protects a real parser: input that passes takes the parser time and memory in
//! proportion to its bytes. So every element of a container must take at least one byte, and nesting is
//! bounded. A known field must have its type, because a parser that assumes the type would continue at
//! another position. <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

/// The most nested structs and containers.
const MAX_DEPTH: usize = 32;

/// The type of a known field.
#[derive(Debug, Clone, Copy)]
pub(super) enum FieldShape {
    Bool,
    Byte,
    /// An integer of 16, 32 or 64 bits. All have the same encoding.
    Int,
    Double,
    Bytes,
    List(&'static FieldShape),
    Struct(KnownFields),
}

/// The known fields of a struct. It may have others, of any type.
pub(super) type KnownFields = &'static [(i16, FieldShape)];

impl FieldShape {
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

    fn matches_wire(self, wire: u8) -> bool {
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

/// The reason why a walk ended early.
#[derive(Debug)]
pub(super) struct WalkError {
    /// The position in the bytes.
    pub(super) at: usize,
    pub(super) found: String,
    pub(super) expected: String,
    /// Flag that is set if more bytes might complete the struct.
    pub(super) is_incomplete: bool,
}

/// Walks one struct from the first byte on. Returns its length. Calls `on_integer` for each integer with the
/// ids of the fields that lead to it.
pub(super) fn walk_struct(
    bytes: &[u8],
    fields: KnownFields,
    seen: &mut dyn FnMut(&[i16], i64),
) -> Result<usize, WalkError> {
    let mut walk = StructWalk { bytes, at: 0, path: Vec::new(), on_integer: seen };
    walk.walk_fields(fields, MAX_DEPTH)?;
    Ok(walk.at)
}

struct StructWalk<'a> {
    bytes: &'a [u8],
    at: usize,
    path: Vec<i16>,
    on_integer: &'a mut dyn FnMut(&[i16], i64),
}

impl StructWalk<'_> {
    fn error_here<T>(&self, found: impl Into<String>, expected: impl Into<String>) -> Result<T, WalkError> {
        Err(WalkError { at: self.at, found: found.into(), expected: expected.into(), is_incomplete: false })
    }

    fn skip_bytes(&mut self, count: u64, what: &str) -> Result<(), WalkError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left => {
                self.at += count;
                Ok(())
            }
            _ => Err(WalkError {
                at: self.at,
                found: format!("{count} bytes of {what}"),
                expected: format!("at most the {left} bytes left"),
                is_incomplete: true,
            }),
        }
    }

    fn read_byte(&mut self) -> Result<u8, WalkError> {
        let at = self.at;
        self.skip_bytes(1, "metadata")?;
        Ok(self.bytes[at])
    }

    fn read_varint(&mut self) -> Result<u64, WalkError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.read_byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.error_here("an integer of more than 10 bytes", "an integer of 64 bits")
    }

    fn read_int(&mut self) -> Result<i64, WalkError> {
        let value = self.read_varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Walks the fields up to the end of the struct.
    fn walk_fields(&mut self, known: KnownFields, depth: usize) -> Result<(), WalkError> {
        let mut id = 0i16;
        loop {
            let head = self.read_byte()?;
            let wire = head & 0xf;
            if wire == 0 {
                return Ok(());
            }
            let next = if head >> 4 == 0 { self.read_int()? } else { i64::from(id) + i64::from(head >> 4) };
            let Ok(next) = i16::try_from(next) else {
                return self.error_here(format!("field {next}"), "a field number of 16 bits");
            };
            id = next;
            let shape = known.iter().find(|(known, _)| *known == id).map(|(_, shape)| *shape);
            if let Some(shape) = shape
                && !shape.matches_wire(wire)
            {
                return self.error_here(
                    format!("field {id} of type {wire}"),
                    format!("{} in that field", shape.name()),
                );
            }
            // A boolean is part of the type.
            if !matches!(wire, 1 | 2) {
                self.path.push(id);
                self.walk_value(wire, shape, depth - 1)?;
                self.path.pop();
            }
        }
    }

    fn walk_value(&mut self, wire: u8, shape: Option<FieldShape>, depth: usize) -> Result<(), WalkError> {
        if depth == 0 {
            return self.error_here(
                format!("structs and lists nested more than {MAX_DEPTH} deep"),
                format!("at most {MAX_DEPTH} levels"),
            );
        }
        match wire {
            3 => self.skip_bytes(1, "metadata"),
            4..=6 => {
                let value = self.read_int()?;
                (self.on_integer)(&self.path, value);
                Ok(())
            }
            7 => self.skip_bytes(8, "metadata"),
            8 => {
                let length = self.read_varint()?;
                self.skip_bytes(length, "text")
            }
            9 | 10 => self.walk_list(shape, depth),
            11 => self.walk_map(depth),
            12 => {
                let fields = if let Some(FieldShape::Struct(fields)) = shape { fields } else { &[] };
                self.walk_fields(fields, depth)
            }
            13 => self.skip_bytes(16, "metadata"),
            _ => self.error_here(format!("type {wire}"), "a type of the compact protocol"),
        }
    }

    fn walk_list(&mut self, shape: Option<FieldShape>, depth: usize) -> Result<(), WalkError> {
        let head = self.read_byte()?;
        let wire = head & 0xf;
        let count = if head >> 4 == 15 { self.read_varint()? } else { u64::from(head >> 4) };
        self.check_room(count, &[wire])?;
        let element = if let Some(FieldShape::List(element)) = shape { Some(*element) } else { None };
        if let Some(element) = element
            && count > 0
            && !element.matches_wire(wire)
        {
            return self
                .error_here(format!("a list of type {wire}"), format!("{} in each element", element.name()));
        }
        for _ in 0..count {
            self.walk_value(wire, element, depth - 1)?;
        }
        Ok(())
    }

    fn walk_map(&mut self, depth: usize) -> Result<(), WalkError> {
        let count = self.read_varint()?;
        if count == 0 {
            return Ok(());
        }
        let wires = self.read_byte()?;
        self.check_room(count, &[wires >> 4, wires & 0xf])?;
        for _ in 0..count {
            self.walk_value(wires >> 4, None, depth - 1)?;
            self.walk_value(wires & 0xf, None, depth - 1)?;
        }
        Ok(())
    }

    /// Checks that the bytes can hold this many elements. Each must take a byte; booleans would take none.
    fn check_room(&self, count: u64, wires: &[u8]) -> Result<(), WalkError> {
        if count > 0 && wires.iter().any(|wire| matches!(wire, 1 | 2)) {
            return self.error_here(
                format!("a container of {count} booleans"),
                "Parquet metadata, which contains none",
            );
        }
        let left = self.bytes.len() - self.at;
        if count.saturating_mul(wires.len() as u64) > left as u64 {
            return Err(WalkError {
                at: self.at,
                found: format!("a container of {count} elements"),
                expected: format!("at least one byte for each, with {left} bytes left"),
                is_incomplete: true,
            });
        }
        Ok(())
    }
}
