//! Small writers of foreign formats, byte by byte, for the trace tests.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    missing_docs,
    reason = "shared by several test files"
)]
#![allow(clippy::unwrap_used, clippy::cast_possible_wrap, reason = "tests")]

use std::io::{Cursor, Write};
use std::path::PathBuf;
use zip::write::SimpleFileOptions;

/// A folder that is deleted with the test.
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// Returns a NumPy array, format version 1.
pub fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let shape = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ") + ",";
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend_from_slice(&(header.len() as u16).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// Returns a zip archive, with deflated members if `deflate` is set.
pub fn zip(members: &[(&str, &[u8])], deflate: bool) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let method = if deflate { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A Python value to be pickled.
#[derive(Clone)]
pub enum Py {
    None,
    Int(i64),
    Str(String),
    List(Vec<Py>),
    Dict(Vec<(String, Py)>),
    Tensor(Tensor),
}

/// A view of a storage.
#[derive(Clone)]
pub struct Tensor {
    pub storage: &'static str,
    pub key: String,
    pub length: u64,
    pub device: &'static str,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

impl Tensor {
    /// Returns a contiguous tensor that fills its storage.
    pub fn plain(storage: &'static str, key: &str, shape: &[u64]) -> Self {
        let mut strides = vec![1; shape.len()];
        for dim in (1..shape.len()).rev() {
            strides[dim - 1] = strides[dim] * shape[dim];
        }
        Self {
            storage,
            key: key.into(),
            length: shape.iter().product(),
            device: "cuda:0",
            offset: 0,
            shape: shape.to_vec(),
            strides,
        }
    }
}

pub fn dict(items: Vec<(&str, Py)>) -> Py {
    Py::Dict(items.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Pickles a value with protocol 2.
pub fn pickle(value: &Py) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    put(value, &mut out);
    out.push(b'.');
    out
}

fn put(value: &Py, out: &mut Vec<u8>) {
    match value {
        Py::None => out.push(b'N'),
        Py::Int(number) => {
            out.extend_from_slice(&[0x8a, 8]);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Py::Str(text) => string(text, out),
        Py::List(items) => {
            out.extend_from_slice(b"](");
            for item in items {
                put(item, out);
            }
            out.push(b'e');
        }
        Py::Dict(items) => {
            out.extend_from_slice(b"}(");
            for (key, value) in items {
                string(key, out);
                put(value, out);
            }
            out.push(b'u');
        }
        Py::Tensor(tensor) => {
            out.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            string("storage", out);
            out.extend_from_slice(format!("ctorch\n{}\n", tensor.storage).as_bytes());
            string(&tensor.key, out);
            string(tensor.device, out);
            put(&Py::Int(tensor.length as i64), out);
            out.extend_from_slice(b"tQ");
            put(&Py::Int(tensor.offset as i64), out);
            for sizes in [&tensor.shape, &tensor.strides] {
                out.push(b'(');
                for &size in sizes {
                    put(&Py::Int(size as i64), out);
                }
                out.push(b't');
            }
            out.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR");
        }
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'X');
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Returns a file as `torch.save` writes it.
pub fn pt(root: &Py, storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    pt_raw(&pickle(root), storages)
}

/// Returns such a file around any pickle.
pub fn pt_raw(pickle: &[u8], storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let names: Vec<String> = storages.iter().map(|(key, _)| format!("dump/data/{key}")).collect();
    let mut members: Vec<(&str, &[u8])> = vec![("dump/data.pkl", pickle), ("dump/byteorder", b"little")];
    for (name, (_, data)) in names.iter().zip(storages) {
        members.push((name, data));
    }
    zip(&members, false)
}

pub fn i32s(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Returns a file with `{"logical_count": tensor}` of int64.
pub fn stat(shape: &[u64], counts: &[i64]) -> Vec<u8> {
    let root = dict(vec![
        ("rank", Py::Int(0)),
        ("logical_count", Py::Tensor(Tensor::plain("LongStorage", "0", shape))),
        ("average_utilization_rate_over_window", Py::None),
    ]);
    pt(&root, &[("0", i64s(counts))])
}

/// Returns two passes of one rank: 2 layers, 4 slots for 3 experts.
pub fn records(rank: i64, counts: &[i32; 16]) -> Vec<u8> {
    let tensor =
        |offset: u64| Py::Tensor(Tensor { length: 16, offset, ..Tensor::plain("IntStorage", "0", &[2, 4]) });
    let pass = |id: i64, offset: u64| {
        dict(vec![
            ("forward_pass_id", Py::Int(id)),
            ("rank", Py::Int(rank)),
            ("gatherer_key", Py::Str("primary".into())),
            ("global_physical_count", tensor(offset)),
        ])
    };
    let root = dict(vec![
        ("records", Py::List(vec![pass(10, 0), pass(11, 8)])),
        ("last_physical_to_logical_map", Py::Tensor(Tensor::plain("LongStorage", "1", &[2, 4]))),
    ]);
    pt(&root, &[("0", i32s(counts)), ("1", i64s(&[0, 1, 2, 0, 2, 1, 0, 1]))])
}

/// Returns a safetensors file of int64 vectors.
pub fn safetensors(tensors: &[(&str, Vec<i64>)]) -> Vec<u8> {
    let data: Vec<(&str, Vec<u8>, usize)> =
        tensors.iter().map(|(name, values)| (*name, i64s(values), values.len())).collect();
    let views: Vec<_> = data
        .iter()
        .map(|(name, bytes, length)| {
            (
                *name,
                safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![*length], bytes).unwrap(),
            )
        })
        .collect();
    safetensors::serialize(views, None).unwrap()
}
