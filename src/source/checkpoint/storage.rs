//! Bytes of a weight file and the numbers in them.
//!
//! Files are read piece by piece into memory and never mapped: a mapped file that shrinks kills the process.

use crate::error::{Error, Result, quoted};
use crate::files::open_regular;
use crate::source::digests::Stamp;
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
        let origin = path.display().to_string();
        let (file, metadata) = open_regular(path)?;
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

    /// What is known of the file without reading it; none where it has changed since it was opened, and for embedded bytes.
    pub fn stamp(&self) -> Option<Stamp> {
        let Bytes::File { file, modified } = &self.bytes else { return None };
        let now = file.metadata().ok().filter(|now| now.len() == self.len && now.modified().ok() == *modified)?;
        Stamp::of(Path::new(&self.origin), &now)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::golden;
    use safetensors::SafeTensors;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Every bit pattern of 16 bits, as little-endian bytes.
    fn all_halves() -> Vec<u8> {
        (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn bf16_is_the_upper_half_of_f32() {
        let decoded = Stored::BF16.decode(&all_halves(), 1 << 16).unwrap();
        for (pattern, value) in decoded.iter().enumerate() {
            let expected = f32::from_bits((pattern as u32) << 16);
            assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(), "{pattern:#x}");
        }
    }

    #[test]
    fn f16_is_sign_exponent_and_fraction() {
        let decoded = Stored::F16.decode(&all_halves(), 1 << 16).unwrap();
        for (pattern, value) in decoded.iter().enumerate() {
            let (sign, exponent, fraction) = (pattern >> 15, pattern >> 10 & 31, (pattern & 1023) as f32 / 1024.0);
            let magnitude = match exponent {
                0 => fraction * 2f32.powi(-14),
                31 if fraction == 0.0 => f32::INFINITY,
                31 => f32::NAN,
                _ => (1.0 + fraction) * 2f32.powi(exponent as i32 - 15),
            };
            let expected = if sign == 1 { -magnitude } else { magnitude };
            assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(), "{pattern:#x}");
        }
    }

    #[test]
    fn f32_is_itself_also_over_several_chunks() {
        let values: Vec<f32> = (0..2 * CHUNK + 5).map(|i| f32::from_bits(i as u32 * 31_337)).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(bits(&Stored::F32.decode(&bytes, values.len()).unwrap()), bits(&values));
    }

    /// Random blocks of every type, and the values that the gguf package gives them; `tests/golden/tiny_gguf.py`.
    #[test]
    fn every_block_type_decodes_to_the_bit() {
        use GgmlDType::*;
        let file = std::fs::read(golden("tiny_gguf/blocks.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let types = [("Q4_0", Q4_0), ("Q4_1", Q4_1), ("Q5_0", Q5_0), ("Q5_1", Q5_1), ("Q8_0", Q8_0)];
        let k_types = [("Q2_K", Q2K), ("Q3_K", Q3K), ("Q4_K", Q4K), ("Q5_K", Q5K), ("Q6_K", Q6K)];
        for (name, kind) in types.into_iter().chain(k_types) {
            let bytes = file.tensor(&format!("{name}.bytes")).unwrap().data().to_vec();
            let expected = file.tensor(&format!("{name}.values")).unwrap().data().to_vec();
            let count = expected.len() / 4;
            let stored = Stored::Blocks(kind);
            assert_eq!(stored.size(&[count]), Some(bytes.len()), "{name}");
            // Often enough to fill several chunks.
            let times = 2 * CHUNK / count + 1;
            let decoded = stored.decode(&aligned(&bytes.repeat(times)), count * times).unwrap();
            let expected = Stored::F32.decode(&expected, count).unwrap();
            assert!(decoded.chunks(count).all(|values| bits(values) == bits(&expected)), "{name}");
        }
    }

    fn aligned(bytes: &[u8]) -> Aligned {
        let mut aligned = Aligned::new(bytes.len());
        aligned.copy_from_slice(bytes);
        aligned
    }

    #[test]
    fn a_size_that_overflows_or_splits_a_block_is_none() {
        assert_eq!(Stored::F32.size(&[3, 5]), Some(60));
        assert_eq!(Stored::F32.size(&[]), Some(4));
        assert_eq!(Stored::F32.size(&[usize::MAX / 2]), None);
        assert_eq!(Stored::F16.size(&[1 << 32, 1 << 32]), None);
        assert_eq!(Stored::Blocks(GgmlDType::Q4_0).size(&[2, 64]), Some(72));
        assert_eq!(Stored::Blocks(GgmlDType::Q4_0).size(&[4, 16]), None);
    }

    #[test]
    fn a_file_that_changes_after_it_was_opened_is_an_error_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let change = |change: &dyn Fn(&File)| {
            std::fs::write(&path, vec![7; 3 * PIECE]).unwrap();
            let mut source = Source::open(&path).unwrap();
            assert_eq!(*source.read(PIECE as u64, 4).unwrap(), [7; 4]);
            change(&File::options().write(true).open(&path).unwrap());
            let sentences = [source.read(2 * PIECE as u64, PIECE).err(), source.hash(&mut Sha256::new()).err()];
            for error in sentences {
                assert!(error.expect("the change should be noticed").to_string().contains("changed while it was read"));
            }
        };
        change(&|file| file.set_len(PIECE as u64).unwrap());
        change(&|file| file.set_len(4 * PIECE as u64).unwrap());
        change(&|file| file.set_modified(SystemTime::UNIX_EPOCH).unwrap());
    }

    #[test]
    fn bytes_past_the_end_are_refused_without_memory() {
        let mut source = Source::embedded("bytes", b"abc");
        assert_eq!(*source.read(1, 2).unwrap(), *b"bc");
        for (start, len) in [(1, 3), (u64::MAX, 1), (0, usize::MAX), (4, 0)] {
            assert!(source.read(start, len).is_err());
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_a_regular_file_is_refused() {
        for path in ["/dev/zero", "/"] {
            assert!(Source::open(Path::new(path)).err().unwrap().to_string().contains("not a regular file"));
        }
        assert!(Source::open(Path::new("/nonexistent")).err().unwrap().to_string().contains("/nonexistent"));
    }
}
