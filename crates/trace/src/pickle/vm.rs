//! The machine that runs down a pickle's instructions and builds values.
//!
//! In: bytes. Out: the parts of a [`Pickle`], or a refusal by name. It has a stack, marks and a
//! memo like Python's own, but calls nothing.

use super::{Element, Global, MAX_DIMS, MAX_VALUES, Pickle, Storage, Tensor, Value};
use crate::trace::error::{invalid, quote};
use crate::trace::{Place, TraceError};
use std::collections::HashMap;
use std::path::Path;

pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the current instruction began.
    opcode_at: usize,
    path: &'a Path,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// Values pushed so far.
    values: usize,
    out: Pickle,
}

impl<'a> Machine<'a> {
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
                root: Value::None,
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

    fn wrong(&self, found: impl Into<String>, expected: &str) -> TraceError {
        invalid(self.path, Place::Key(format!("pickle byte {}", self.opcode_at)), found, expected)
    }

    fn refuse(&self, what: String) -> TraceError {
        TraceError::Refused { path: self.path.to_path_buf(), what, offset: self.opcode_at as u64 }
    }

    fn take(&mut self, count: usize) -> Result<&[u8], TraceError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.wrong("the end of the pickle", "the rest of the instruction"));
        };
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// A little-endian number of up to 8 bytes.
    fn number(&mut self, count: usize) -> Result<u64, TraceError> {
        let mut wide = [0; 8];
        wide[..count].copy_from_slice(self.take(count)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// A line of text, as the older instructions have it.
    fn line(&mut self) -> Result<String, TraceError> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().take(4096).position(|&byte| byte == b'\n') else {
            return Err(self.wrong("no line end", "a name ended by a line feed"));
        };
        self.at += length + 1;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    fn push(&mut self, value: Value) -> Result<(), TraceError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.wrong("more values", &format!("at most {MAX_VALUES}")));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, TraceError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.wrong("an empty stack", "a value for the instruction"));
        }
        self.stack.pop().ok_or_else(|| self.wrong("an empty stack", "a value for the instruction"))
    }

    fn top(&self) -> Result<Value, TraceError> {
        self.stack.last().copied().ok_or_else(|| self.wrong("an empty stack", "a value for the instruction"))
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value>, TraceError> {
        let Some(mark) = self.marks.pop() else {
            return Err(self.wrong("no mark", "a mark for the instruction"));
        };
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn string(&mut self, length: u64) -> Result<(), TraceError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.out.strings.push(text);
        self.push(Value::Str(self.out.strings.len() - 1))
    }

    fn items(&mut self, items: Vec<Value>) -> usize {
        self.out.items.push(items);
        self.out.items.len() - 1
    }

    fn tuple(&mut self, count: usize) -> Result<(), TraceError> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        let at = self.items(items);
        self.push(Value::Tuple(at))
    }

    /// Appends to the list or dictionary on top.
    fn extend(&mut self, values: Vec<Value>, dict: bool) -> Result<(), TraceError> {
        match self.top()? {
            Value::List(at) if !dict => self.out.items[at].extend(values),
            Value::Dict(at) if dict && values.len().is_multiple_of(2) => self.out.items[at].extend(values),
            other => {
                let found = self.out.describe(other);
                return Err(self.wrong(found, "a list or dictionary to append to"));
            }
        }
        Ok(())
    }

    fn memoize(&mut self, key: u64) -> Result<(), TraceError> {
        let top = self.top()?;
        self.memo.insert(key as u32, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), TraceError> {
        match self.memo.get(&(key as u32)) {
            Some(&value) => self.push(value),
            None => Err(self.wrong(format!("memo {key}"), "a memo written before")),
        }
    }

    /// One instruction; true at the end.
    #[expect(clippy::too_many_lines, reason = "one arm per instruction reads best as one list")]
    pub(super) fn instruction(&mut self) -> Result<bool, TraceError> {
        self.opcode_at = self.at;
        let opcode = self.take(1)?[0];
        match opcode {
            0x80 => {
                let version = self.number(1)?;
                if !(2..=5).contains(&version) {
                    return Err(self.wrong(format!("protocol {version}"), "a pickle protocol from 2 to 5"));
                }
            }
            0x95 => {
                // Length of a frame: bounds are checked at every read anyhow.
                self.number(8)?;
            }
            b'.' => {
                self.out.root = self.pop()?;
                return Ok(true);
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let number = self.number(1)?;
                self.push(Value::Int(number.cast_signed()))?;
            }
            b'M' => {
                let number = self.number(2)?;
                self.push(Value::Int(number.cast_signed()))?;
            }
            b'J' => {
                let number = (self.number(4)? as u32).cast_signed();
                self.push(Value::Int(i64::from(number)))?;
            }
            0x8a => {
                let length = self.number(1)? as usize;
                if length > 8 {
                    return Err(self.wrong(format!("a number of {length} bytes"), "at most 8 bytes"));
                }
                let number = self.number(length)?;
                let shift = 64 - 8 * length as u32;
                self.push(Value::Int(if length == 0 {
                    0
                } else {
                    (number << shift).cast_signed() >> shift
                }))?;
            }
            b'G' => {
                let mut bits = [0; 8];
                bits.copy_from_slice(self.take(8)?);
                self.push(Value::Float(f64::from_be_bytes(bits)))?;
            }
            b'X' | b'B' | b'T' => {
                let length = self.number(4)?;
                self.string(length)?;
            }
            0x8c | b'C' | b'U' => {
                let length = self.number(1)?;
                self.string(length)?;
            }
            0x8d | 0x8e => {
                let length = self.number(8)?;
                self.string(length)?;
            }
            b'(' => {
                if self.marks.len() >= MAX_VALUES {
                    return Err(self.wrong("more marks", &format!("at most {MAX_VALUES}")));
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
                let at = self.items(Vec::new());
                self.push(Value::Dict(at))?;
            }
            b']' => {
                let at = self.items(Vec::new());
                self.push(Value::List(at))?;
            }
            b'd' | b'l' | b't' => {
                let items = self.pop_mark()?;
                if opcode == b'd' && items.len() % 2 == 1 {
                    return Err(self.wrong("a key without a value", "pairs of key and value"));
                }
                let at = self.items(items);
                self.push(match opcode {
                    b'd' => Value::Dict(at),
                    b'l' => Value::List(at),
                    _ => Value::Tuple(at),
                })?;
            }
            b')' => self.tuple(0)?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'a' => {
                let value = self.pop()?;
                self.extend(vec![value], false)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend(vec![key, value], true)?;
            }
            b'e' | b'u' => {
                let values = self.pop_mark()?;
                self.extend(values, opcode == b'u')?;
            }
            b'q' => {
                let key = self.number(1)?;
                self.memoize(key)?;
            }
            b'r' => {
                let key = self.number(4)?;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            b'h' => {
                let key = self.number(1)?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.number(4)?;
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return Err(self.wrong("a global without a name", "module and name as strings"));
                };
                let (module, name) = (self.out.strings[module].clone(), self.out.strings[name].clone());
                self.global(&module, &name)?;
            }
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            other => {
                let name = opcode_name(other);
                return Err(self.refuse(format!("instruction {name}")));
            }
        }
        Ok(false)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), TraceError> {
        let element = match name {
            "BoolStorage" => Some(Element::Bool),
            "ByteStorage" => Some(Element::U8),
            "CharStorage" => Some(Element::I8),
            "ShortStorage" => Some(Element::I16),
            "IntStorage" => Some(Element::I32),
            "LongStorage" => Some(Element::I64),
            "HalfStorage" => Some(Element::F16),
            "BFloat16Storage" => Some(Element::BF16),
            "FloatStorage" => Some(Element::F32),
            "DoubleStorage" => Some(Element::F64),
            _ => None,
        };
        let global = match (module, name, element) {
            ("torch" | "torch.cuda", _, Some(element)) => Global::Storage(element),
            ("torch", "Size", _) => Global::Size,
            ("torch._utils", "_rebuild_tensor_v2", _) => Global::RebuildTensor,
            ("collections", "OrderedDict", _) => Global::OrderedDict,
            _ => {
                let name = format!("{module}.{name}");
                let shown = quote(name.as_bytes());
                return Err(self.refuse(format!("global {}", shown.trim_matches('"'))));
            }
        };
        self.push(Value::Global(global))
    }

    /// `('storage', torch.LongStorage, '0', 'cuda:0', elements)`
    fn persistent(&mut self) -> Result<(), TraceError> {
        let id = self.pop()?;
        let expected = "a storage id of (\"storage\", type, key, device, elements)";
        let parts = self.out.list(id).unwrap_or_default();
        let &[
            Value::Str(tag),
            Value::Global(Global::Storage(element)),
            Value::Str(key),
            _,
            Value::Int(length),
        ] = parts
        else {
            let found = self.out.describe(id);
            return Err(self.wrong(found, expected));
        };
        let (tag, key) = (&self.out.strings[tag], self.out.strings[key].clone());
        let Ok(length) = u64::try_from(length) else { return Err(self.wrong("a negative length", expected)) };
        if tag != "storage" {
            return Err(self.wrong(quote(tag.as_bytes()), expected));
        }
        self.out.storages.push(Storage { element, key, length });
        self.push(Value::Storage(self.out.storages.len() - 1))
    }

    fn reduce(&mut self) -> Result<(), TraceError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = self.out.list(arguments).unwrap_or_default().to_vec();
        match (function, arguments.as_slice()) {
            (Value::Global(Global::OrderedDict), []) => {
                let at = self.items(Vec::new());
                self.push(Value::Dict(at))
            }
            (Value::Global(Global::Size), &[sizes @ (Value::List(_) | Value::Tuple(_))]) => self.push(sizes),
            (
                Value::Global(Global::RebuildTensor),
                &[Value::Storage(storage), Value::Int(offset), shape, strides, ..],
            ) => {
                let (Ok(offset), Some(shape), Some(strides)) =
                    (u64::try_from(offset), self.sizes(shape), self.sizes(strides))
                else {
                    return Err(self.wrong("other arguments", "offset, shape and strides of a tensor"));
                };
                if shape.len() != strides.len() {
                    return Err(self.wrong(
                        format!("{} sizes and {} strides", shape.len(), strides.len()),
                        "a stride for each dimension",
                    ));
                }
                let storage = self.out.storages[storage].clone();
                self.out.tensors.push(Tensor { storage, offset, shape, strides });
                self.push(Value::Tensor(self.out.tensors.len() - 1))
            }
            (function, _) => {
                let found =
                    format!("a call of {} with {} arguments", self.out.describe(function), arguments.len());
                Err(self.wrong(found, "a tensor or an empty OrderedDict"))
            }
        }
    }

    fn sizes(&self, value: Value) -> Option<Vec<u64>> {
        let sizes = self.out.list(value)?;
        if sizes.len() > MAX_DIMS {
            return None;
        }
        sizes
            .iter()
            .map(|size| match *size {
                Value::Int(size) => u64::try_from(size).ok(),
                _ => None,
            })
            .collect()
    }
}

/// Names of the instructions that are refused.
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
        _ => return format!("0x{opcode:02x}, which no protocol has,"),
    };
    name.into()
}
