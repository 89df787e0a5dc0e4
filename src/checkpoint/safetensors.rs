//! The safetensors format: eight bytes of header length, a JSON header of names, types, shapes and offsets, the data.
//!
//! The `safetensors` crate reads the header and checks it: offsets start at zero and leave no hole and no overlap, and
//! each span is its shape times its type. Here the header is bounded before it is read, and compared with the length
//! of the file, which the crate could do only with the whole file in memory.

use super::storage::{Source, Stored};
use super::{Entry, Tensors};
use crate::error::Result;
use safetensors::tensor::{Dtype, Metadata};

/// Largest header that is read, in bytes. The format allows 100 MB, which would take more than a gigabyte once parsed;
/// that of the largest model here (1,024 layers) takes less than three.
const LARGEST_HEADER: u64 = 4 << 20;

/// Reads the header of the file that becomes `sources[source]`.
pub(super) fn tensors(file: &mut Source, source: usize) -> Result<Tensors> {
    if file.len < 8 {
        return Err(file.error("is not a safetensors file: it is shorter than eight bytes"));
    }
    let prefix = file.read(0, 8)?;
    let length = u64::from_le_bytes(prefix.first_chunk().copied().unwrap_or_default());
    if length > LARGEST_HEADER || length > file.len - 8 {
        return Err(file.error(format!(
            "is not a safetensors file: its header claims {length} bytes, but the file has {} and at most {LARGEST_HEADER} are read",
            file.len
        )));
    }
    let header = file.read(8, length as usize)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| file.error(format!("has an invalid safetensors header: {error}")))?;
    let data = 8 + length;
    if metadata.data_len() as u64 != file.len - data {
        return Err(file.error(format!(
            "is truncated or has bytes left over: its header describes {} bytes of data, the file holds {}",
            metadata.data_len(),
            file.len - data
        )));
    }
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (begin, end) = info.data_offsets;
        let stored = match info.dtype {
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::BF16,
            other => Stored::Unreadable(format!("{other:?}")),
        };
        let (start, len) = (data + begin as u64, end - begin);
        (name, Entry { source, start, len, shape: info.shape.clone(), stored, interleaved: None })
    };
    Ok(metadata.tensors().into_iter().map(entry).collect())
}
