//! The machine that executes the instructions of a pickle and builds values.
//!
//! Input is bytes. Output is the parts of a [`Pickle`], or an error that names the refused instruction. The
//! machine has a stack, marks and a memo like Python's own, but calls no function.

use super::{
    ElementType, MAX_DIMS, MAX_VALUES, Pickle, PickleGlobal, PickleValue, TensorStorage, TensorView,
};
use crate::{Location, TraceError};
use evenkeel::trace::build::{invalid_content, quote_bytes};
use std::collections::HashMap;
use std::path::Path;

pub(super) struct PickleMachine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The position of the current instruction.
    opcode_at: usize,
    path: &'a Path,
    stack: Vec<PickleValue>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, PickleValue>,
    /// The number of values pushed so far.
    values: usize,
    out: Pickle,
}

impl<'a> PickleMachine<'a> {
    pub(super) fn new(bytes: &'a [u8], path: &'a Path) -> Self {
        Self {
            bytes,
            at: 0,
            opcode_at: 0,
            path,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            values: 0,
            out: Pickle {
                root: PickleValue::None,
                strings: Vec::new(),
                items: Vec::new(),
                tensors: Vec::new(),
                storages: Vec::new(),
            },
        }
    }

    pub(super) fn into_pickle(self) -> Pickle {
        self.out
    }

    fn opcode_error(&self, found: impl Into<String>, expected: &str) -> TraceError {
        invalid_content(self.path, Location::Key(format!("pickle byte {}", self.opcode_at)), found, expected)
    }

    fn refusal_error(&self, what: String) -> TraceError {
        TraceError::Refused { path: self.path.to_path_buf(), what, offset: self.opcode_at as u64 }
    }

    fn take_bytes(&mut self, count: usize) -> Result<&[u8], TraceError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.opcode_error("the end of the pickle", "the rest of the instruction"));
        };
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// Reads a little-endian number of up to 8 bytes.
    fn read_number(&mut self, count: usize) -> Result<u64, TraceError> {
        let mut wide = [0; 8];
        wide[..count].copy_from_slice(self.take_bytes(count)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// Reads a line of text, which older instructions use.
    fn read_line(&mut self) -> Result<String, TraceError> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().take(4096).position(|&byte| byte == b'\n') else {
            return Err(self.opcode_error("no line end", "a name ended by a line feed"));
        };
        self.at += length + 1;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    fn push(&mut self, value: PickleValue) -> Result<(), TraceError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.opcode_error("more values", &format!("at most {MAX_VALUES}")));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<PickleValue, TraceError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.opcode_error("an empty stack", "a value for the instruction"));
        }
        self.stack.pop().ok_or_else(|| self.opcode_error("an empty stack", "a value for the instruction"))
    }

    fn top_value(&self) -> Result<PickleValue, TraceError> {
        self.stack
            .last()
            .copied()
            .ok_or_else(|| self.opcode_error("an empty stack", "a value for the instruction"))
    }

    /// Pops everything above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<PickleValue>, TraceError> {
        let Some(mark) = self.marks.pop() else {
            return Err(self.opcode_error("no mark", "a mark for the instruction"));
        };
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn push_string(&mut self, length: u64) -> Result<(), TraceError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let text = String::from_utf8_lossy(self.take_bytes(length)?).into_owned();
        self.out.strings.push(text);
        self.push(PickleValue::Str(self.out.strings.len() - 1))
    }

    fn store_items(&mut self, items: Vec<PickleValue>) -> usize {
        self.out.items.push(items);
        self.out.items.len() - 1
    }

    fn push_tuple(&mut self, count: usize) -> Result<(), TraceError> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        let at = self.store_items(items);
        self.push(PickleValue::Tuple(at))
    }

    /// Appends to the list or dictionary at the top of the stack.
    fn extend_top(&mut self, values: Vec<PickleValue>, dict: bool) -> Result<(), TraceError> {
        match self.top_value()? {
            PickleValue::List(at) if !dict => self.out.items[at].extend(values),
            PickleValue::Dict(at) if dict && values.len().is_multiple_of(2) => {
                self.out.items[at].extend(values);
            }
            other => {
                let found = self.out.describe_value(other);
                return Err(self.opcode_error(found, "a list or dictionary to append to"));
            }
        }
        Ok(())
    }

    fn memoize(&mut self, key: u64) -> Result<(), TraceError> {
        let top = self.top_value()?;
        self.memo.insert(key as u32, top);
        Ok(())
    }

    fn push_memo(&mut self, key: u64) -> Result<(), TraceError> {
        match self.memo.get(&(key as u32)) {
            Some(&value) => self.push(value),
            None => Err(self.opcode_error(format!("memo {key}"), "the number of an earlier memo")),
        }
    }

    /// Executes one instruction. Returns true at the end.
    #[expect(clippy::too_many_lines, reason = "one arm per instruction reads best as one list")]
    pub(super) fn run_instruction(&mut self) -> Result<bool, TraceError> {
        self.opcode_at = self.at;
        let opcode = self.take_bytes(1)?[0];
        match opcode {
            0x80 => {
                let version = self.read_number(1)?;
                if !(2..=5).contains(&version) {
                    return Err(
                        self.opcode_error(format!("protocol {version}"), "a pickle protocol from 2 to 5")
                    );
                }
            }
            0x95 => {
                // The length of a frame is ignored, because every read checks its bounds.
                self.read_number(8)?;
            }
            b'.' => {
                self.out.root = self.pop()?;
                return Ok(true);
            }
            b'N' => self.push(PickleValue::None)?,
            0x88 => self.push(PickleValue::Bool(true))?,
            0x89 => self.push(PickleValue::Bool(false))?,
            b'K' => {
                let number = self.read_number(1)?;
                self.push(PickleValue::Int(number.cast_signed()))?;
            }
            b'M' => {
                let number = self.read_number(2)?;
                self.push(PickleValue::Int(number.cast_signed()))?;
            }
            b'J' => {
                let number = (self.read_number(4)? as u32).cast_signed();
                self.push(PickleValue::Int(i64::from(number)))?;
            }
            0x8a => {
                let length = self.read_number(1)? as usize;
                if length > 8 {
                    return Err(self.opcode_error(format!("a number of {length} bytes"), "at most 8 bytes"));
                }
                let number = self.read_number(length)?;
                let shift = 64 - 8 * length as u32;
                self.push(PickleValue::Int(if length == 0 {
                    0
                } else {
                    (number << shift).cast_signed() >> shift
                }))?;
            }
            b'G' => {
                let mut bits = [0; 8];
                bits.copy_from_slice(self.take_bytes(8)?);
                self.push(PickleValue::Float(f64::from_be_bytes(bits)))?;
            }
            b'X' | b'B' | b'T' => {
                let length = self.read_number(4)?;
                self.push_string(length)?;
            }
            0x8c | b'C' | b'U' => {
                let length = self.read_number(1)?;
                self.push_string(length)?;
            }
            0x8d | 0x8e => {
                let length = self.read_number(8)?;
                self.push_string(length)?;
            }
            b'(' => {
                if self.marks.len() >= MAX_VALUES {
                    return Err(self.opcode_error("more marks", &format!("at most {MAX_VALUES}")));
                }
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'}' => {
                let at = self.store_items(Vec::new());
                self.push(PickleValue::Dict(at))?;
            }
            b']' => {
                let at = self.store_items(Vec::new());
                self.push(PickleValue::List(at))?;
            }
            b'd' | b'l' | b't' => {
                let items = self.pop_mark()?;
                if opcode == b'd' && items.len() % 2 == 1 {
                    return Err(self.opcode_error("a key without a value", "pairs of key and value"));
                }
                let at = self.store_items(items);
                self.push(match opcode {
                    b'd' => PickleValue::Dict(at),
                    b'l' => PickleValue::List(at),
                    _ => PickleValue::Tuple(at),
                })?;
            }
            b')' => self.push_tuple(0)?,
            0x85 => self.push_tuple(1)?,
            0x86 => self.push_tuple(2)?,
            0x87 => self.push_tuple(3)?,
            b'a' => {
                let value = self.pop()?;
                self.extend_top(vec![value], false)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_top(vec![key, value], true)?;
            }
            b'e' | b'u' => {
                let values = self.pop_mark()?;
                self.extend_top(values, opcode == b'u')?;
            }
            b'q' => {
                let key = self.read_number(1)?;
                self.memoize(key)?;
            }
            b'r' => {
                let key = self.read_number(4)?;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            b'h' => {
                let key = self.read_number(1)?;
                self.push_memo(key)?;
            }
            b'j' => {
                let key = self.read_number(4)?;
                self.push_memo(key)?;
            }
            b'c' => {
                let (module, name) = (self.read_line()?, self.read_line()?);
                self.push_global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (PickleValue::Str(module), PickleValue::Str(name)) = (module, name) else {
                    return Err(self.opcode_error("a global without a name", "module and name as strings"));
                };
                let (module, name) = (self.out.strings[module].clone(), self.out.strings[name].clone());
                self.push_global(&module, &name)?;
            }
            b'Q' => self.push_storage()?,
            b'R' => self.reduce_call()?,
            other => {
                let name = opcode_name(other);
                return Err(self.refusal_error(format!("instruction {name}")));
            }
        }
        Ok(false)
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), TraceError> {
        let element = match name {
            "BoolStorage" => Some(ElementType::Bool),
            "ByteStorage" => Some(ElementType::U8),
            "CharStorage" => Some(ElementType::I8),
            "ShortStorage" => Some(ElementType::I16),
            "IntStorage" => Some(ElementType::I32),
            "LongStorage" => Some(ElementType::I64),
            "HalfStorage" => Some(ElementType::F16),
            "BFloat16Storage" => Some(ElementType::BF16),
            "FloatStorage" => Some(ElementType::F32),
            "DoubleStorage" => Some(ElementType::F64),
            _ => None,
        };
        let global = match (module, name, element) {
            ("torch" | "torch.cuda", _, Some(element)) => PickleGlobal::Storage(element),
            ("torch", "Size", _) => PickleGlobal::Size,
            ("torch._utils", "_rebuild_tensor_v2", _) => PickleGlobal::RebuildTensor,
            ("collections", "OrderedDict", _) => PickleGlobal::OrderedDict,
            _ => {
                let name = format!("{module}.{name}");
                let shown = quote_bytes(name.as_bytes());
                return Err(self.refusal_error(format!("global {}", shown.trim_matches('"'))));
            }
        };
        self.push(PickleValue::Global(global))
    }

    /// Reads a storage id: `('storage', torch.LongStorage, '0', 'cuda:0', read_elements)`.
    fn push_storage(&mut self) -> Result<(), TraceError> {
        let id = self.pop()?;
        let expected = "a storage id of (\"storage\", type, key, device, elements)";
        let parts = self.out.as_list(id).unwrap_or_default();
        let &[
            PickleValue::Str(tag),
            PickleValue::Global(PickleGlobal::Storage(element)),
            PickleValue::Str(key),
            _,
            PickleValue::Int(length),
        ] = parts
        else {
            let found = self.out.describe_value(id);
            return Err(self.opcode_error(found, expected));
        };
        let (tag, key) = (&self.out.strings[tag], self.out.strings[key].clone());
        let Ok(length) = u64::try_from(length) else {
            return Err(self.opcode_error("a negative length", expected));
        };
        if tag != "storage" {
            return Err(self.opcode_error(quote_bytes(tag.as_bytes()), expected));
        }
        self.out.storages.push(TensorStorage { element, key, length });
        self.push(PickleValue::Storage(self.out.storages.len() - 1))
    }

    fn reduce_call(&mut self) -> Result<(), TraceError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = self.out.as_list(arguments).unwrap_or_default().to_vec();
        match (function, arguments.as_slice()) {
            (PickleValue::Global(PickleGlobal::OrderedDict), []) => {
                let at = self.store_items(Vec::new());
                self.push(PickleValue::Dict(at))
            }
            (
                PickleValue::Global(PickleGlobal::Size),
                &[sizes @ (PickleValue::List(_) | PickleValue::Tuple(_))],
            ) => self.push(sizes),
            (
                PickleValue::Global(PickleGlobal::RebuildTensor),
                &[PickleValue::Storage(storage), PickleValue::Int(offset), shape, strides, ..],
            ) => {
                let (Ok(offset), Some(shape), Some(strides)) =
                    (u64::try_from(offset), self.tensor_sizes(shape), self.tensor_sizes(strides))
                else {
                    return Err(self.opcode_error("other arguments", "offset, shape and strides of a tensor"));
                };
                if shape.len() != strides.len() {
                    return Err(self.opcode_error(
                        format!("{} sizes and {} strides", shape.len(), strides.len()),
                        "a stride for each dimension",
                    ));
                }
                let storage = self.out.storages[storage].clone();
                self.out.tensors.push(TensorView { storage, offset, shape, strides });
                self.push(PickleValue::Tensor(self.out.tensors.len() - 1))
            }
            (function, _) => {
                let found = format!(
                    "a call of {} with {} arguments",
                    self.out.describe_value(function),
                    arguments.len()
                );
                Err(self.opcode_error(found, "a tensor or an empty OrderedDict"))
            }
        }
    }

    fn tensor_sizes(&self, value: PickleValue) -> Option<Vec<u64>> {
        let sizes = self.out.as_list(value)?;
        if sizes.len() > MAX_DIMS {
            return None;
        }
        sizes
            .iter()
            .map(|size| match *size {
                PickleValue::Int(size) => u64::try_from(size).ok(),
                _ => None,
            })
            .collect()
    }
}

/// Returns the name of a refused instruction.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'b' => "BUILD",
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        b'2' => "DUP",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'g' => "GET",
        b'p' => "PUT",
        0x8b => "LONG4",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x96 => "BYTEARRAY8",
        0x97 | 0x98 => "BUFFER",
        _ => return format!("0x{opcode:02x}, unknown in all protocols,"),
    };
    name.into()
}
