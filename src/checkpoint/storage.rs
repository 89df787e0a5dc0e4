//! Bytes of a weight file and the numbers in them.
//!
//! Files are read piece by piece into memory and never mapped: a mapped file that shrinks kills the process.

use crate::error::{Error, Result, quoted};
use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::SystemTime;

/// Values decoded by one task; a multiple of every block size.
const CHUNK: usize = 1 << 16;
/// Bytes hashed at a time.
const PIECE: usize = 1 << 20;

/// A weight file, or the bytes of one embedded in the program.
pub(super) struct Source {
    /// Name in errors.
    pub origin: String,
    pub len: u64,
    bytes: Bytes,
}

enum Bytes {
    File { file: File, modified: Option<SystemTime> },
    Embedded(&'static [u8]),
}

impl Source {
    /// Opens a regular file. Whatever else lies there (a pipe would block for ever) is refused before it is opened.
    pub fn open(path: &Path) -> Result<Self> {
        let reading = |error| Error::reading(path, &error);
        let origin = path.display().to_string();
        if !std::fs::metadata(path).map_err(reading)?.is_file() {
            return Err(Error::input(format!("{} is not a regular file", quoted(&origin))));
        }
        let file = File::open(path).map_err(reading)?;
        let metadata = file.metadata().map_err(reading)?;
        let bytes = Bytes::File { file, modified: metadata.modified().ok() };
        Ok(Self { origin, len: metadata.len(), bytes })
    }

    pub fn embedded(origin: &str, bytes: &'static [u8]) -> Self {
        Self { origin: origin.to_owned(), len: bytes.len() as u64, bytes: Bytes::Embedded(bytes) }
    }

    /// `len` bytes from `start`, which the caller has checked to lie within the file as it was when opened.
    pub fn read(&mut self, start: u64, len: usize) -> Result<Aligned> {
        let end = start.checked_add(len as u64).filter(|end| *end <= self.len);
        let end = end.ok_or_else(|| self.error("ends too early"))?;
        let mut buffer = Aligned::new(len);
        match &mut self.bytes {
            Bytes::Embedded(all) => buffer.copy_from_slice(&all[start as usize..end as usize]),
            Bytes::File { file, modified } => {
                let complete = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut buffer));
                let now = complete.and_then(|()| file.metadata());
                match now {
                    Ok(now) if now.len() == self.len && now.modified().ok() == *modified => {}
                    Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                        return Err(Error::reading(Path::new(&self.origin), &error));
                    }
                    _ => {
                        return Err(self.error("changed while it was read; start again when it is complete"));
                    }
                }
            }
        }
        Ok(buffer)
    }

    /// Feeds the whole file to a hash.
    pub fn hash(&mut self, hash: &mut Sha256) -> Result<()> {
        let mut start = 0;
        while start < self.len {
            let len = (self.len - start).min(PIECE as u64);
            hash.update(&*self.read(start, len as usize)?);
            start += len;
        }
        Ok(())
    }

    /// An error about this file: its name and what is wrong.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("{} {what}", quoted(&self.origin)))
    }
}

/// Bytes at an address that is a multiple of eight, as the block decoders ask for.
pub(super) struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len }
    }
}

impl Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

/// How the values of a tensor are stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stored {
    F32,
    F16,
    BF16,
    /// Blocks of quantised values with their scales, as in GGUF.
    Blocks(GgmlDType),
    /// A type that is not read, by name.
    Unreadable(String),
}

impl Stored {
    /// Bytes that a tensor of this shape takes; `None` when there is no such tensor: the product overflows, or the
    /// rows are not a whole number of blocks.
    pub fn size(&self, shape: &[usize]) -> Option<usize> {
        let (block, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Blocks(kind) => (kind.block_size(), kind.type_size()),
            Self::Unreadable(_) => return None,
        };
        let row = shape.last().copied().unwrap_or(1);
        let count = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))?;
        (row % block == 0).then(|| (count / block).checked_mul(bytes))?
    }

    /// The values of a tensor of `count` elements as f32, exactly; the error completes a sentence that starts with the
    /// tensor's name.
    pub fn decode(&self, bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
        match self {
            Self::F32 => Ok(each(bytes, count, f32::from_le_bytes)),
            Self::F16 => Ok(each(bytes, count, |raw| f16::from_le_bytes(raw).to_f32())),
            Self::BF16 => Ok(each(bytes, count, |raw| bf16::from_le_bytes(raw).to_f32())),
            Self::Blocks(kind) => blocks(*kind, bytes, count),
            Self::Unreadable(name) => Err(format!("is stored as {name}, a type that is not read")),
        }
    }
}

fn each<const N: usize>(bytes: &[u8], count: usize, value: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let mut values = vec![0.0; count];
    let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N));
    chunks.for_each(|(values, bytes)| {
        let (raw, _) = bytes.as_chunks::<N>();
        for (slot, raw) in values.iter_mut().zip(raw) {
            *slot = value(*raw);
        }
    });
    values
}

fn blocks(kind: GgmlDType, bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let mut values = vec![0.0; count];
    let chunk_bytes = CHUNK / kind.block_size() * kind.type_size();
    let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(chunk_bytes));
    chunks.try_for_each(|(values, bytes)| {
        match kind.from_data(Cow::Borrowed(bytes)).dequantize(values.len()) {
            Ok(CpuStorage::F32(decoded)) => values.copy_from_slice(&decoded),
            Ok(_) => return Err(format!("has {kind:?} blocks that do not decode to f32")),
            Err(error) => return Err(format!("has {kind:?} blocks that cannot be decoded: {error}")),
        }
        Ok(())
    })?;
    Ok(values)
}
