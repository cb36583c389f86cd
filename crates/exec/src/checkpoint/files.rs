//! The files of a checkpoint and the tensors in them.

use super::decode;
use crate::exec::error::ExecError;
use half::bf16;
use memmap2::Mmap;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::path::{Path, PathBuf};

/// All files of a folder, mapped.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    mapped: Vec<(PathBuf, Mmap)>,
    /// Where each tensor is: its file, where its file's numbers begin, and what the file says about it.
    tensors: HashMap<String, (usize, usize, TensorInfo)>,
}

/// A tensor of a file.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    path: &'a Path,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

fn wrong(path: &Path, reason: String) -> ExecError {
    ExecError::Weights { path: path.to_owned(), reason }
}

impl Files {
    pub(super) fn open(folder: &Path) -> Result<Self, ExecError> {
        let failed = |error: std::io::Error| wrong(folder, error.to_string());
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(failed)?
            .map(|entry| Ok(entry.map_err(failed)?.path()))
            .collect::<Result<_, ExecError>>()?;
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
        paths.sort();
        if paths.is_empty() {
            return Err(wrong(folder, "no .safetensors file in this folder".into()));
        }
        let mut all = Self { folder: folder.to_owned(), mapped: Vec::new(), tensors: HashMap::new() };
        for path in paths {
            all.add(path)?;
        }
        Ok(all)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), ExecError> {
        let file = File::open(&path).map_err(|error| wrong(&path, error.to_string()))?;
        // SAFETY: a mapping is sound as long as nobody writes to the file; weights are published once and read.
        #[allow(unsafe_code, reason = "memory-mapped files")]
        let map = unsafe { Mmap::map(&file) }.map_err(|error| wrong(&path, error.to_string()))?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| wrong(&path, format!("not a whole safetensors file: {error}")))?;
        for (name, info) in metadata.tensors() {
            match self.tensors.entry(name) {
                // Behind eight bytes of length and the header.
                Entry::Vacant(place) => place.insert((self.mapped.len(), 8 + header, info.clone())),
                Entry::Occupied(known) => {
                    let other = &self.mapped[known.get().0].0;
                    return Err(wrong(
                        &path,
                        format!("tensor {} is in {} as well", known.key(), other.display()),
                    ));
                }
            };
        }
        self.mapped.push((path, map));
        Ok(())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn wrong(&self, reason: String) -> ExecError {
        wrong(&self.folder, reason)
    }

    pub(super) fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (file, start, info) = self.tensors.get(name)?;
        let (path, map) = &self.mapped[*file];
        let (from, to) = info.data_offsets;
        // In range, as was checked when the file was opened.
        let bytes = map.get(start + from..start + to)?;
        Some(Tensor { path, name: name.to_owned(), dtype: info.dtype, shape: info.shape.clone(), bytes })
    }
}

impl Tensor<'_> {
    fn wrong(&self, reason: &str) -> ExecError {
        wrong(self.path, format!("tensor {}: {reason}", self.name))
    }

    pub(super) fn has_shape(&self, expected: &[usize]) -> Result<(), ExecError> {
        if self.shape == expected {
            return Ok(());
        }
        Err(self.wrong(&format!("shape {:?}, expected {expected:?} as the model has it", self.shape)))
    }

    /// The `at`-th of `parts` along the first axis.
    pub(super) fn part(mut self, at: usize, parts: usize) -> Result<Self, ExecError> {
        let bytes = self.bytes.len() / parts.max(1);
        self.bytes = self.bytes.get(at * bytes..(at + 1) * bytes).ok_or_else(|| self.wrong("too short"))?;
        Ok(self)
    }

    pub(super) fn bytes(&self) -> Result<&[u8], ExecError> {
        if self.dtype == Dtype::U8 { Ok(self.bytes) } else { Err(self.wrong("expected bytes (U8)")) }
    }

    /// As bf16, where it is stored so and all numbers are finite.
    pub(super) fn bf16(&self) -> Option<Vec<bf16>> {
        if self.dtype != Dtype::BF16 {
            return None;
        }
        let numbers: Vec<bf16> =
            self.bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect();
        numbers.iter().all(|x| x.is_finite()).then_some(numbers)
    }

    pub(super) fn numbers(&self) -> Result<Vec<f32>, ExecError> {
        let numbers = match self.dtype {
            Dtype::F32 => decode::f32s(self.bytes),
            Dtype::F16 => decode::f16s(self.bytes),
            Dtype::BF16 => decode::bf16s(self.bytes),
            Dtype::F8_E4M3 => decode::fp8s(self.bytes),
            other => {
                let reason = format!("{other:?} numbers, expected F32, F16, BF16 or F8_E4M3");
                return Err(self.wrong(&reason));
            }
        };
        self.finite(numbers)
    }

    /// These numbers of it, where all are finite.
    pub(super) fn finite(&self, numbers: Vec<f32>) -> Result<Vec<f32>, ExecError> {
        if numbers.iter().all(|x| x.is_finite()) {
            return Ok(numbers);
        }
        Err(self.wrong("a number that is not finite"))
    }
}
