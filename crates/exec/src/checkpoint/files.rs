//! The files of a checkpoint, and their tensors.

use super::decode;
use crate::error::ExecError;
use half::bf16;
use memmap2::Mmap;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::path::{Path, PathBuf};

/// All files of a folder, mapped into memory.
#[derive(Debug)]
pub(super) struct CheckpointFiles {
    folder: PathBuf,
    mapped: Vec<(PathBuf, Mmap)>,
    /// The location of each tensor: its file, the start of the file's numbers, and the tensor's entry in the
    /// file's header.
    tensors: HashMap<String, (usize, usize, TensorInfo)>,
}

/// A tensor of a file.
#[derive(Debug)]
pub(super) struct StoredTensor<'a> {
    path: &'a Path,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

fn weights_error(path: &Path, reason: String) -> ExecError {
    ExecError::Weights { path: path.to_owned(), reason }
}

impl CheckpointFiles {
    pub(super) fn open(folder: &Path) -> Result<Self, ExecError> {
        let failed = |error: std::io::Error| weights_error(folder, error.to_string());
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(failed)?
            .map(|entry| Ok(entry.map_err(failed)?.path()))
            .collect::<Result<_, ExecError>>()?;
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
        paths.sort();
        if paths.is_empty() {
            return Err(weights_error(folder, "no .safetensors file in this folder".into()));
        }
        let mut all = Self { folder: folder.to_owned(), mapped: Vec::new(), tensors: HashMap::new() };
        for path in paths {
            all.map_file(path)?;
        }
        Ok(all)
    }

    fn map_file(&mut self, path: PathBuf) -> Result<(), ExecError> {
        let file = File::open(&path).map_err(|error| weights_error(&path, error.to_string()))?;
        // SAFETY: a mapping is sound while nothing writes to the file. Published weights are only read.
        #[allow(unsafe_code, reason = "memory-mapped files")]
        let map = unsafe { Mmap::map(&file) }.map_err(|error| weights_error(&path, error.to_string()))?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| weights_error(&path, format!("not a whole safetensors file: {error}")))?;
        for (name, info) in metadata.tensors() {
            match self.tensors.entry(name) {
                // The numbers follow eight bytes of length and the header.
                Entry::Vacant(place) => place.insert((self.mapped.len(), 8 + header, info.clone())),
                Entry::Occupied(known) => {
                    let other = &self.mapped[known.get().0].0;
                    return Err(weights_error(
                        &path,
                        format!("tensor {} is in {} as well", known.key(), other.display()),
                    ));
                }
            };
        }
        self.mapped.push((path, map));
        Ok(())
    }

    pub(super) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn folder_error(&self, reason: String) -> ExecError {
        weights_error(&self.folder, reason)
    }

    pub(super) fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let (file, start, info) = self.tensors.get(name)?;
        let (path, map) = &self.mapped[*file];
        let (from, to) = info.data_offsets;
        // The range was checked when the file was opened.
        let bytes = map.get(start + from..start + to)?;
        Some(StoredTensor {
            path,
            name: name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes,
        })
    }
}

impl StoredTensor<'_> {
    fn tensor_error(&self, reason: &str) -> ExecError {
        weights_error(self.path, format!("tensor {}: {reason}", self.name))
    }

    pub(super) fn check_shape(&self, expected: &[usize]) -> Result<(), ExecError> {
        if self.shape == expected {
            return Ok(());
        }
        Err(self.tensor_error(&format!("shape {:?}, expected {expected:?} for this model", self.shape)))
    }

    /// Returns part `at` of `parts` equal parts along the first axis.
    pub(super) fn slice_part(mut self, at: usize, parts: usize) -> Result<Self, ExecError> {
        let bytes = self.bytes.len() / parts.max(1);
        self.bytes =
            self.bytes.get(at * bytes..(at + 1) * bytes).ok_or_else(|| self.tensor_error("too short"))?;
        Ok(self)
    }

    pub(super) fn u8_bytes(&self) -> Result<&[u8], ExecError> {
        if self.dtype == Dtype::U8 { Ok(self.bytes) } else { Err(self.tensor_error("expected bytes (U8)")) }
    }

    /// Returns the numbers as bf16 if they are stored in bf16 and all finite.
    pub(super) fn finite_bf16(&self) -> Option<Vec<bf16>> {
        if self.dtype != Dtype::BF16 {
            return None;
        }
        let numbers: Vec<bf16> =
            self.bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect();
        numbers.iter().all(|x| x.is_finite()).then_some(numbers)
    }

    pub(super) fn to_f32(&self) -> Result<Vec<f32>, ExecError> {
        let numbers = match self.dtype {
            Dtype::F32 => decode::decode_f32(self.bytes),
            Dtype::F16 => decode::decode_f16(self.bytes),
            Dtype::BF16 => decode::decode_bf16(self.bytes),
            Dtype::F8_E4M3 => decode::decode_fp8(self.bytes),
            other => {
                let reason = format!("{other:?} numbers, expected F32, F16, BF16 or F8_E4M3");
                return Err(self.tensor_error(&reason));
            }
        };
        self.check_finite(numbers)
    }

    /// Returns the numbers if all are finite.
    pub(super) fn check_finite(&self, numbers: Vec<f32>) -> Result<Vec<f32>, ExecError> {
        if numbers.iter().all(|x| x.is_finite()) {
            return Ok(numbers);
        }
        Err(self.tensor_error("a number that is not finite"))
    }
}
