//! Reads a pickle as data, without running it.
//!
//! In: the bytes of a `data.pkl` from `torch.save`, protocols 2 to 5. Out: a [`Pickle`]: a
//! tree of plain values and references to tensors. A pickle is a program; this reader knows
//! the few instructions that build dictionaries, lists, numbers, strings and tensors, and
//! refuses every other instruction and every other global by name. Instructions:
//! CPython's `Lib/pickletools.py`; tensors: PyTorch's `torch/_utils.py`.

mod machine;

use super::TraceError;
use super::error::quote;
use machine::Machine;
use std::path::Path;

/// Most values a pickle may build.
const MAX_VALUES: usize = 1 << 24;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 8;

/// A value; containers live in the [`Pickle`], so that cycles cost nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// Kept for nothing but its presence.
    Float(f64),
    Str(usize),
    List(usize),
    Tuple(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
    Global(Global),
}

/// The globals that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global {
    RebuildTensor,
    OrderedDict,
    Size,
    Storage(Element),
}

/// Element types of storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    Bool,
    U8,
    I8,
    I16,
    I32,
    I64,
    F16,
    BF16,
    F32,
    F64,
}

impl Element {
    /// As PyTorch names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bool => "torch.bool",
            Self::U8 => "torch.uint8",
            Self::I8 => "torch.int8",
            Self::I16 => "torch.int16",
            Self::I32 => "torch.int32",
            Self::I64 => "torch.int64",
            Self::F16 => "torch.float16",
            Self::BF16 => "torch.bfloat16",
            Self::F32 => "torch.float32",
            Self::F64 => "torch.float64",
        }
    }

    /// Bytes of one.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }
}

/// A stretch of elements in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) element: Element,
    /// Name of the file.
    pub(crate) key: String,
    /// Elements.
    pub(crate) length: u64,
}

/// A view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) storage: Storage,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

/// What a pickle describes.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(crate) root: Value,
    strings: Vec<String>,
    /// Lists and tuples; dictionaries as keys and values in turn.
    items: Vec<Vec<Value>>,
    tensors: Vec<Tensor>,
    storages: Vec<Storage>,
}

impl Pickle {
    /// Runs down the instructions.
    pub(crate) fn read(bytes: &[u8], path: &Path) -> Result<Self, TraceError> {
        let mut machine = Machine::new(bytes, path);
        while !machine.instruction()? {}
        Ok(machine.into_pickle())
    }

    /// Elements of a list or tuple.
    pub(crate) fn list(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::List(at) | Value::Tuple(at) => self.items.get(at).map(Vec::as_slice),
            _ => None,
        }
    }

    pub(crate) fn tensor(&self, value: Value) -> Option<&Tensor> {
        match value {
            Value::Tensor(at) => self.tensors.get(at),
            _ => None,
        }
    }

    /// The value of a string key; the last one wins, as in Python.
    pub(crate) fn get(&self, dict: Value, key: &str) -> Option<Value> {
        let Value::Dict(at) = dict else { return None };
        self.items
            .get(at)?
            .chunks_exact(2)
            .rev()
            .find(|pair| matches!(pair[0], Value::Str(at) if self.strings[at] == key))
            .map(|pair| pair[1])
    }

    /// What a value is, for messages.
    pub(crate) fn describe(&self, value: Value) -> String {
        match value {
            Value::None => "None".into(),
            Value::Bool(_) => "a bool".into(),
            Value::Int(number) => format!("the number {number}"),
            Value::Float(number) => format!("the number {number}"),
            Value::Str(at) => format!("the string {}", quote(self.strings[at].as_bytes())),
            Value::List(at) => format!("a list of {}", self.items[at].len()),
            Value::Tuple(at) => format!("a tuple of {}", self.items[at].len()),
            Value::Dict(at) => {
                let keys: Vec<&str> = self.items[at]
                    .chunks_exact(2)
                    .filter_map(|pair| match pair[0] {
                        Value::Str(at) => Some(self.strings[at].as_str()),
                        _ => None,
                    })
                    .take(8)
                    .collect();
                format!("a dictionary with keys {}", quote(keys.join(", ").as_bytes()))
            }
            Value::Tensor(at) => {
                let tensor = &self.tensors[at];
                format!("a {} tensor of shape {:?}", tensor.storage.element.name(), tensor.shape)
            }
            Value::Storage(_) => "a bare storage".into(),
            Value::Global(_) => "a bare global".into(),
        }
    }
}
