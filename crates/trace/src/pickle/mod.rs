//! A reader of pickles as data, without their execution.
//!
//! Input is the bytes of a `data.pkl` from `torch.save`, protocols 2 to 5. Output is a [`Pickle`]: a tree of
//! plain values and references to tensors. A pickle is a program. This reader accepts the few instructions
//! that build dictionaries, lists, numbers, strings and tensors. It refuses every other instruction and every
//! other global by name. Instructions: CPython's `Lib/pickletools.py`; tensors: PyTorch's `torch/_utils.py`.

mod vm;

use super::TraceError;
use evenkeel::trace::build::quote_bytes;
use std::path::Path;
use vm::PickleMachine;

/// The most values that a pickle may build.
const MAX_VALUES: usize = 1 << 24;
/// The most dimensions of a tensor.
const MAX_DIMS: usize = 8;

/// A value. Containers live in the [`Pickle`], so that cycles cost nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum PickleValue {
    None,
    Bool(bool),
    Int(i64),
    /// A number that is only recorded and never used.
    Float(f64),
    Str(usize),
    List(usize),
    Tuple(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
    Global(PickleGlobal),
}

/// The accepted globals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PickleGlobal {
    RebuildTensor,
    OrderedDict,
    Size,
    Storage(ElementType),
}

/// The element types of storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementType {
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

impl ElementType {
    /// Returns the name in PyTorch.
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

    /// Returns the bytes of one element.
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }
}

/// Consecutive elements in a file of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorStorage {
    pub(crate) element: ElementType,
    /// The name of the file.
    pub(crate) key: String,
    /// The number of elements.
    pub(crate) length: u64,
}

/// A view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorView {
    pub(crate) storage: TensorStorage,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

/// The content of a pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(crate) root: PickleValue,
    strings: Vec<String>,
    /// Lists and tuples. Dictionaries alternate keys and values.
    items: Vec<Vec<PickleValue>>,
    tensors: Vec<TensorView>,
    storages: Vec<TensorStorage>,
}

impl Pickle {
    /// Executes the instructions.
    pub(crate) fn read(bytes: &[u8], path: &Path) -> Result<Self, TraceError> {
        let mut machine = PickleMachine::new(bytes, path);
        while !machine.run_instruction()? {}
        Ok(machine.into_pickle())
    }

    /// Returns the elements of a list or tuple.
    pub(crate) fn as_list(&self, value: PickleValue) -> Option<&[PickleValue]> {
        match value {
            PickleValue::List(at) | PickleValue::Tuple(at) => self.items.get(at).map(Vec::as_slice),
            _ => None,
        }
    }

    pub(crate) fn as_tensor(&self, value: PickleValue) -> Option<&TensorView> {
        match value {
            PickleValue::Tensor(at) => self.tensors.get(at),
            _ => None,
        }
    }

    /// Returns the value of a string key. The last one wins, as in Python.
    pub(crate) fn get(&self, dict: PickleValue, key: &str) -> Option<PickleValue> {
        let PickleValue::Dict(at) = dict else { return None };
        self.items
            .get(at)?
            .chunks_exact(2)
            .rev()
            .find(|pair| matches!(pair[0], PickleValue::Str(at) if self.strings[at] == key))
            .map(|pair| pair[1])
    }

    /// Returns a description of a value for messages.
    pub(crate) fn describe_value(&self, value: PickleValue) -> String {
        match value {
            PickleValue::None => "None".into(),
            PickleValue::Bool(_) => "a bool".into(),
            PickleValue::Int(number) => format!("the number {number}"),
            PickleValue::Float(number) => format!("the number {number}"),
            PickleValue::Str(at) => format!("the string {}", quote_bytes(self.strings[at].as_bytes())),
            PickleValue::List(at) => format!("a list of {}", self.items[at].len()),
            PickleValue::Tuple(at) => format!("a tuple of {}", self.items[at].len()),
            PickleValue::Dict(at) => {
                let keys: Vec<&str> = self.items[at]
                    .chunks_exact(2)
                    .filter_map(|pair| match pair[0] {
                        PickleValue::Str(at) => Some(self.strings[at].as_str()),
                        _ => None,
                    })
                    .take(8)
                    .collect();
                format!("a dictionary with keys {}", quote_bytes(keys.join(", ").as_bytes()))
            }
            PickleValue::Tensor(at) => {
                let tensor = &self.tensors[at];
                format!("a {} tensor of shape {:?}", tensor.storage.element.name(), tensor.shape)
            }
            PickleValue::Storage(_) => "a bare storage".into(),
            PickleValue::Global(_) => "a bare global".into(),
        }
    }
}
