//! Files of `torch.save`: a zip of one pickle and one file per storage.
//!
//! Input is an [`InputFile`]. Output is a [`TorchFile`]: the pickle as data, and integer tensors on demand.
//! Every size is checked twice, as declared and as found in the zip. Layout: PyTorch's
//! `torch/serialization.py`, the zip form of version 1.6 and later.

use super::input::{InputFile, ReadSeek};
use super::pickle::{ElementType, Pickle, TensorView};
use super::{Location, TraceError};
use evenkeel::trace::build::{invalid_content, io_error_at};
use std::io::Read;
use std::path::Path;

/// The most bytes of a pickle.
const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// An open file.
pub(crate) struct TorchFile<'a> {
    path: &'a Path,
    archive: zip::ZipArchive<Box<dyn ReadSeek + 'a>>,
    /// The folder of all members, with the slash.
    prefix: String,
    pub(crate) pickle: Pickle,
    /// The most bytes of a tensor.
    memory: u64,
    /// The last storage read. Many tensors may share one.
    cached: Option<(String, Vec<u8>)>,
}

impl<'a> TorchFile<'a> {
    pub(crate) fn open(input: &'a InputFile<'a>, memory: u64) -> Result<Self, TraceError> {
        let path = input.path.as_path();
        let zip_file = "a zip as torch.save writes it";
        if input.read_head(3)? == [0x80, 0x02, 0x8a] {
            return Err(invalid_content(
                path,
                Location::File,
                "torch's old format, from before 1.6",
                zip_file,
            ));
        }
        let broken =
            |error: zip::result::ZipError| invalid_content(path, Location::File, error.to_string(), zip_file);
        let mut archive = zip::ZipArchive::new(input.open_seekable()?).map_err(broken)?;
        let mut pickles = Vec::new();
        for name in archive.file_names() {
            let name = name.map_err(broken)?;
            if name == "data.pkl" || name.ends_with("/data.pkl") {
                pickles.push(name.into_owned());
            }
        }
        let [name] = pickles.as_slice() else {
            return Err(invalid_content(
                path,
                Location::File,
                format!("{} members data.pkl", pickles.len()),
                "exactly one",
            ));
        };
        let prefix = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
        let bytes = read_member(&mut archive, path, name, MAX_PICKLE_BYTES)?;
        let order = format!("{prefix}byteorder");
        if archive.index_for_name(&order).is_some() {
            let order = read_member(&mut archive, path, &order, 64)?;
            if order != b"little" {
                return Err(invalid_content(
                    path,
                    Location::Key("byteorder".into()),
                    evenkeel::trace::build::quote_bytes(&order),
                    "little-endian tensors",
                ));
            }
        }
        let pickle = Pickle::read(&bytes, path)?;
        Ok(Self { path, archive, prefix, pickle, memory, cached: None })
    }

    /// Returns the elements of an integer tensor, row-major. Errors use `name`.
    pub(crate) fn read_integers(&mut self, tensor: &TensorView, name: &str) -> Result<Vec<i64>, TraceError> {
        let path = self.path;
        let place = || Location::Key(name.to_owned());
        let element = tensor.storage.element;
        if matches!(element, ElementType::F16 | ElementType::BF16 | ElementType::Bool) {
            return Err(invalid_content(
                path,
                place(),
                element.name(),
                "a tensor of whole numbers (int32 or int64)",
            ));
        }
        let count = tensor.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let shape = &tensor.shape;
        let Some(count) = count.filter(|&count| count <= tensor.storage.length) else {
            return Err(invalid_content(
                path,
                place(),
                format!("shape {shape:?} over a storage of {} elements", tensor.storage.length),
                "a shape that the storage can fill",
            ));
        };
        if count == 0 {
            return Ok(Vec::new());
        }
        let last =
            tensor.shape.iter().zip(&tensor.strides).try_fold(tensor.offset, |at, (&size, &stride)| {
                at.checked_add((size - 1).checked_mul(stride)?)
            });
        if last.is_none_or(|last| last >= tensor.storage.length) {
            return Err(invalid_content(
                path,
                place(),
                format!("offset {}, strides {:?} for shape {shape:?}", tensor.offset, tensor.strides),
                format!("a view within the {} elements of its storage", tensor.storage.length),
            ));
        }
        let bytes = tensor.storage.length.checked_mul(element.size_bytes() as u64);
        let Some(bytes) = bytes.filter(|&bytes| bytes.max(count.saturating_mul(8)) <= self.memory) else {
            return Err(TraceError::Limit {
                path: path.to_path_buf(),
                place: place(),
                what: format!(
                    "shape {shape:?} does not fit the {} MiB allowed; raise --memory",
                    self.memory >> 20
                ),
            });
        };
        self.load_storage(&tensor.storage.key, bytes, name)?;
        let data = self.cached.as_ref().map_or(&[][..], |(_, data)| data.as_slice());

        let mut out = Vec::with_capacity(count as usize);
        let mut index = vec![0u64; shape.len()];
        let mut at = tensor.offset;
        loop {
            let bytes = &data[at as usize * element.size_bytes()..][..element.size_bytes()];
            let number = decode_element(bytes, element).ok_or_else(|| {
                invalid_content(path, place(), format!("a fraction at {index:?}"), "whole numbers")
            })?;
            out.push(number);
            // Increment the index like an odometer, last dimension first.
            let mut dim = shape.len();
            loop {
                if dim == 0 {
                    return Ok(out);
                }
                dim -= 1;
                index[dim] += 1;
                at += tensor.strides[dim];
                if index[dim] < shape[dim] {
                    break;
                }
                at -= tensor.strides[dim] * shape[dim];
                index[dim] = 0;
            }
        }
    }

    fn load_storage(&mut self, key: &str, bytes: u64, name: &str) -> Result<(), TraceError> {
        if self.cached.as_ref().is_some_and(|(cached, data)| cached == key && data.len() as u64 >= bytes) {
            return Ok(());
        }
        self.cached = None;
        let file = format!("{}data/{key}", self.prefix);
        let data = read_member(&mut self.archive, self.path, &file, self.memory)?;
        if (data.len() as u64) < bytes {
            return Err(invalid_content(
                self.path,
                Location::Key(name.to_owned()),
                format!("{} bytes in member data/{key}", data.len()),
                format!("{bytes} bytes, as its storage declares"),
            ));
        }
        self.cached = Some((key.to_owned(), data));
        Ok(())
    }
}

/// Returns one decompressed member, up to a limit.
fn read_member(
    archive: &mut zip::ZipArchive<Box<dyn ReadSeek + '_>>,
    path: &Path,
    name: &str,
    limit: u64,
) -> Result<Vec<u8>, TraceError> {
    let place = || Location::Key(format!("member {}", evenkeel::trace::build::quote_bytes(name.as_bytes())));
    let member = archive
        .by_name(name)
        .map_err(|error| invalid_content(path, place(), error.to_string(), "a readable member of the zip"))?;
    let mut bytes = Vec::new();
    member.take(limit + 1).read_to_end(&mut bytes).map_err(io_error_at(path))?;
    if bytes.len() as u64 > limit {
        return Err(TraceError::Limit {
            path: path.to_path_buf(),
            place: place(),
            what: format!("longer than {limit} bytes, the limit"),
        });
    }
    Ok(bytes)
}

/// Returns a little-endian element as an integer.
fn decode_element(bytes: &[u8], element: ElementType) -> Option<i64> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let raw = u64::from_le_bytes(wide);
    let real = match element {
        ElementType::I8 => return Some(i64::from((raw as u8).cast_signed())),
        ElementType::I16 => return Some(i64::from((raw as u16).cast_signed())),
        ElementType::I32 => return Some(i64::from((raw as u32).cast_signed())),
        ElementType::U8 | ElementType::I64 => return Some(raw.cast_signed()),
        ElementType::F32 => f64::from(f32::from_bits(raw as u32)),
        ElementType::F64 => f64::from_bits(raw),
        ElementType::Bool | ElementType::F16 | ElementType::BF16 => return None,
    };
    // Above 2^53 not every integer is a double.
    (real.fract() == 0.0 && real.abs() <= 9_007_199_254_740_992.0).then_some(real as i64)
}
