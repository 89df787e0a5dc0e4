//! The GGUF container: counts, key-value metadata, tensor descriptions, then aligned data.
//!
//! An own bounded reader in place of candle's, which divides by an alignment of zero, takes 32 bytes of memory for each
//! byte of an array, keeps the last of two tensors of one name, and cannot name a type that it does not know. Here
//! arrays stay in the header's bytes until they are asked for, and every count, length, shape and offset is checked
//! against the bytes that are there.

use crate::error::{Error, Result, quoted};
use crate::source::checkpoint::storage::{Aligned, Source, Stored};
use candle_core::quantized::GgmlDType;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;

/// The header must lie in this many bytes. (That of a model with 262 thousand tokens takes about 15 MiB.)
const LARGEST_HEADER: u64 = 64 << 20;
const LARGEST_ALIGNMENT: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
/// Metadata entries, and tensors.
const MAX_ENTRIES: u64 = 1 << 16;

/// Everything before the data.
pub(super) struct Header {
    origin: String,
    bytes: Aligned,
    metadata: BTreeMap<String, Metadata>,
    pub tensors: Vec<Tensor>,
}

/// A value of the metadata.
enum Metadata {
    /// A number, a truth value or a text.
    Scalar(Value),
    /// An array of `count` elements of one type, at these bytes of the header.
    Array { element: u32, count: usize, bytes: Range<usize> },
}

/// Description of one tensor.
pub(super) struct Tensor {
    pub name: String,
    /// Outermost dimension first, as everywhere but in the file.
    pub shape: Vec<usize>,
    pub stored: Stored,
    /// First byte in the file.
    pub start: u64,
    pub len: usize,
}

impl Header {
    pub fn read(source: &mut Source) -> Result<Self> {
        let bytes = source.read(0, source.len.min(LARGEST_HEADER) as usize)?;
        let mut cursor = Cursor { bytes: &bytes, at: 0 };
        let (metadata, tensors) = parse(&mut cursor, source.len).map_err(|what| source.error(what))?;
        Ok(Self { origin: source.origin.clone(), bytes, metadata, tensors })
    }

    /// A number, truth value or text; `None` when the key is absent.
    pub fn scalar(&self, key: &str) -> Result<Option<&Value>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::Scalar(value)) => Ok(Some(value)),
            Some(Metadata::Array { .. }) => Err(self.wrong(key, "a single value")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.scalar(key)? else {
            return Ok(None);
        };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a text"))
    }

    /// The elements of an array of texts; none when the key is absent.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        match self.metadata.get(key) {
            None => Ok(Vec::new()),
            Some(Metadata::Array { element: TEXT, count, bytes }) => {
                let mut cursor = Cursor { bytes: &self.bytes[bytes.clone()], at: 0 };
                let texts = (0..*count).map(|_| cursor.text()).collect::<Result<_, _>>();
                texts.map_err(|_| self.wrong(key, "an array of UTF-8 texts"))
            }
            Some(_) => Err(self.wrong(key, "an array of texts")),
        }
    }

    /// The elements of an array of 32-bit integers; none when the key is absent.
    pub fn integers(&self, key: &str) -> Result<Vec<i32>> {
        match self.metadata.get(key) {
            None => Ok(Vec::new()),
            Some(Metadata::Array { element: U32 | I32, bytes, .. }) => {
                let (words, _) = self.bytes[bytes.clone()].as_chunks::<4>();
                Ok(words.iter().map(|word| i32::from_le_bytes(*word)).collect())
            }
            Some(_) => Err(self.wrong(key, "an array of 32-bit integers")),
        }
    }

    /// The elements of an array of 32-bit floats; none when the key is absent.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>> {
        match self.metadata.get(key) {
            None => Ok(Vec::new()),
            Some(Metadata::Array { element: F32, bytes, .. }) => {
                let (words, _) = self.bytes[bytes.clone()].as_chunks::<4>();
                Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
            }
            Some(_) => Err(self.wrong(key, "an array of 32-bit floats")),
        }
    }

    /// Whether there is an entry of this key.
    pub fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// Name of the file in errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// An error about this file: its name and what is wrong.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("{}: {what}", quoted(&self.origin)))
    }

    fn wrong(&self, key: &str, accepted: &str) -> Error {
        self.error(format!("{} must be {accepted}", quoted(key)))
    }
}

type Parsed = (BTreeMap<String, Metadata>, Vec<Tensor>);

/// Reads the header of a file of `len` bytes; the error completes a sentence that starts with the file's name.
fn parse(cursor: &mut Cursor, len: u64) -> Result<Parsed, String> {
    if cursor.take(4).ok() != Some(b"GGUF") {
        return Err("is not a GGUF file: it does not start with `GGUF`".to_owned());
    }
    let version = cursor.u32()?;
    if (2..=3).contains(&version.swap_bytes()) {
        return Err("is a big-endian GGUF, for other machines; convert it with `gguf-convert-endian FILE little`".to_owned());
    }
    if !(2..=3).contains(&version) {
        return Err(format!("has GGUF version {version}; 2 and 3 are read"));
    }
    let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
    for (what, claimed) in [("tensors", tensors), ("metadata entries", pairs)] {
        if claimed > MAX_ENTRIES {
            return Err(format!("claims {claimed} {what}; at most {MAX_ENTRIES} are read"));
        }
    }
    let metadata = (0..cursor.count("metadata entries", pairs, 13)?).try_fold(BTreeMap::new(), |mut all, _| {
        let (key, value) = cursor.pair()?;
        match all.insert(key.to_owned(), value) {
            Some(_) => Err(format!("has the metadata key {} twice", quoted(key))),
            None => Ok(all),
        }
    })?;
    let alignment = alignment(&metadata)?;
    let described: Vec<_> = (0..cursor.count("tensors", tensors, 24)?).map(|_| cursor.tensor()).collect::<Result<_, _>>()?;
    let data = (cursor.at as u64).next_multiple_of(alignment);
    let tensors = described.into_iter().map(|tensor| place(tensor, data, alignment, len));
    let tensors: Vec<Tensor> = tensors.collect::<Result<_, _>>()?;
    refuse_overlap(&tensors)?;
    Ok((metadata, tensors))
}

fn alignment(metadata: &BTreeMap<String, Metadata>) -> Result<u64, String> {
    let alignment = match metadata.get("general.alignment") {
        None => Some(32),
        Some(Metadata::Scalar(value)) => value.as_u64(),
        Some(Metadata::Array { .. }) => None,
    };
    alignment
        .filter(|alignment| alignment.is_power_of_two() && *alignment <= LARGEST_ALIGNMENT)
        .ok_or_else(|| format!("must have a `general.alignment` that is a power of two up to {LARGEST_ALIGNMENT}"))
}

/// A tensor as described: name, shape (innermost dimension first), type, offset into the data.
type Described<'a> = (&'a str, Vec<u64>, u32, u64);

/// Checks a description against the length of the file.
fn place(described: Described, data: u64, alignment: u64, len: u64) -> Result<Tensor, String> {
    let (name, dimensions, kind, offset) = described;
    let tensor = quoted(name);
    let impossible = || format!("describes the tensor {tensor} with the impossible shape {dimensions:?}");
    let outside = || format!("is truncated: the tensor {tensor} lies past its end");
    if offset % alignment != 0 {
        return Err(format!("places the tensor {tensor} at {offset}, not a multiple of the alignment {alignment}"));
    }
    let shape = dimensions.iter().rev().map(|dim| usize::try_from(*dim).ok().filter(|dim| *dim > 0));
    let shape: Vec<usize> = shape.collect::<Option<_>>().ok_or_else(impossible)?;
    let stored = stored(kind);
    let size = match stored {
        Stored::Unreadable(_) => 0,
        _ => stored.size(&shape).ok_or_else(impossible)?,
    };
    let start = data.checked_add(offset).ok_or_else(outside)?;
    match start.checked_add(size as u64) {
        Some(end) if end <= len => Ok(Tensor { name: name.to_owned(), shape, stored, start, len: size }),
        _ => Err(outside()),
    }
}

fn refuse_overlap(tensors: &[Tensor]) -> Result<(), String> {
    let mut by_start: Vec<&Tensor> = tensors.iter().collect();
    by_start.sort_by_key(|tensor| (tensor.start, tensor.len));
    for pair in by_start.windows(2) {
        if pair[0].start + pair[0].len as u64 > pair[1].start {
            return Err(format!("places {} and {} over each other", quoted(&pair[0].name), quoted(&pair[1].name)));
        }
    }
    Ok(())
}

/// The tensor types of ggml, by number.
fn stored(kind: u32) -> Stored {
    let unreadable = |name: &str| Stored::Unreadable(name.to_owned());
    match kind {
        0 => Stored::F32,
        1 => Stored::F16,
        2 => Stored::Blocks(GgmlDType::Q4_0),
        3 => Stored::Blocks(GgmlDType::Q4_1),
        6 => Stored::Blocks(GgmlDType::Q5_0),
        7 => Stored::Blocks(GgmlDType::Q5_1),
        8 => Stored::Blocks(GgmlDType::Q8_0),
        9 => unreadable("Q8_1"),
        10 => Stored::Blocks(GgmlDType::Q2K),
        11 => Stored::Blocks(GgmlDType::Q3K),
        12 => Stored::Blocks(GgmlDType::Q4K),
        13 => Stored::Blocks(GgmlDType::Q5K),
        14 => Stored::Blocks(GgmlDType::Q6K),
        15 => unreadable("Q8_K"),
        16 => unreadable("IQ2_XXS"),
        17 => unreadable("IQ2_XS"),
        18 => unreadable("IQ3_XXS"),
        19 => unreadable("IQ1_S"),
        20 => unreadable("IQ4_NL"),
        21 => unreadable("IQ3_S"),
        22 => unreadable("IQ2_S"),
        23 => unreadable("IQ4_XS"),
        24 => unreadable("I8"),
        25 => unreadable("I16"),
        26 => unreadable("I32"),
        27 => unreadable("I64"),
        28 => unreadable("F64"),
        29 => unreadable("IQ1_M"),
        30 => Stored::BF16,
        34 => unreadable("TQ1_0"),
        35 => unreadable("TQ2_0"),
        39 => unreadable("MXFP4"),
        other => Stored::Unreadable(format!("type {other}")),
    }
}

// Numbers of the metadata types that are met by name.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of one element of a metadata type of fixed width.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The unread rest of the header.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len);
        self.at += taken.map_or(0, <[u8]>::len);
        taken.ok_or_else(|| {
            format!(
                "has a header that claims {len} bytes at byte {}, where {} are left of the file or of the {LARGEST_HEADER} that are read",
                self.at,
                rest.len()
            )
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&self, what: &str, claimed: u64, least: usize) -> Result<usize, String> {
        let left = self.bytes.len() - self.at;
        let count = usize::try_from(claimed).ok().filter(|count| *count <= left / least);
        count.ok_or_else(|| format!("claims {claimed} {what}, more than {left} bytes can hold"))
    }

    fn blob(&mut self) -> Result<&'a [u8], String> {
        let len = self.u64()?;
        let len = self.count("bytes of text", len, 1)?;
        self.take(len)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let at = self.at;
        std::str::from_utf8(self.blob()?).map_err(|_| format!("has a name at byte {at} that is not UTF-8"))
    }

    fn pair(&mut self) -> Result<(&'a str, Metadata), String> {
        let key = self.text()?;
        let kind = self.u32()?;
        let value = if kind == ARRAY { self.elements(key)? } else { Metadata::Scalar(self.scalar(key, kind)?) };
        Ok((key, value))
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            U32 => self.u32()?.into(),
            I32 => i32::from_le_bytes(self.array()?).into(),
            // By way of its shortest decimal: 1e-5 stays 1e-5 instead of 9.999999747378752e-6.
            6 => float(f32::from_le_bytes(self.array()?).to_string()),
            7 => (self.take(1)? != [0]).into(),
            TEXT => String::from_utf8_lossy(self.blob()?).into(),
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => float(f64::from_le_bytes(self.array()?).to_string()),
            other => {
                return Err(format!("gives {} the unknown metadata type {other}", quoted(key)));
            }
        })
    }

    fn elements(&mut self, key: &str) -> Result<Metadata, String> {
        let element = self.u32()?;
        let claimed = self.u64()?;
        let what = format!("elements of {}", quoted(key));
        let start;
        let count;
        if let Some(width) = width(element) {
            count = self.count(&what, claimed, width)?;
            start = self.at;
            self.take(count * width)?;
        } else if element == TEXT {
            count = self.count(&what, claimed, 8)?;
            start = self.at;
            for _ in 0..count {
                self.blob()?;
            }
        } else {
            return Err(format!("gives {} an array of the type {element}; nested arrays are not read", quoted(key)));
        }
        Ok(Metadata::Array { element, count, bytes: start..self.at })
    }

    fn tensor(&mut self) -> Result<Described<'a>, String> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!("gives {} {dimensions} dimensions; at most {MAX_DIMENSIONS} are read", quoted(name)));
        }
        let shape = (0..dimensions).map(|_| self.u64()).collect::<Result<_, _>>()?;
        Ok((name, shape, self.u32()?, self.u64()?))
    }
}

/// A JSON number; what is no number stays a text, so that whoever asks for a number refuses it by name.
fn float(decimal: String) -> Value {
    match decimal.parse().ok().and_then(serde_json::Number::from_f64) {
        Some(number) => number.into(),
        None => decimal.into(),
    }
}

#[cfg(test)]
mod tests;
