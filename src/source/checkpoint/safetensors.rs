//! The safetensors format: eight bytes of header length, a JSON header of names, types, shapes and offsets, the data.
//!
//! The `safetensors` crate reads the header and checks it: offsets start at zero and leave no hole and no overlap, and
//! each span is its shape times its type. Here the header is bounded before it is read, and compared with the length
//! of the file, which the crate could do only with the whole file in memory.

use super::storage::{Source, Stored};
use super::{Entry, Tensors};
use crate::error::Result;
use safetensors::tensor::{Dtype, Metadata};

/// Largest header that is read, in bytes. The format allows 100 MB, which could take two gigabytes once parsed;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Written, peak_memory, safetensors, safetensors_with};
    use proptest::prelude::*;

    fn read(bytes: Vec<u8>) -> Result<Tensors> {
        tensors(&mut Source::embedded("attack.safetensors", bytes.leak()), 0)
    }

    fn refused(bytes: Vec<u8>) -> String {
        let (result, memory) = peak_memory(|| read(bytes));
        assert!(memory < 1 << 20, "{memory} bytes");
        let error = result.expect_err("the file should be refused");
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.starts_with("`attack.safetensors` ") && !text.contains('\n'), "{text}");
        text
    }

    fn valid() -> Vec<u8> {
        let tensor = |name: &str, kind, shape, bytes| -> Written { (name.to_owned(), kind, shape, vec![0; bytes]) };
        safetensors(&[tensor("a", "F32", vec![2, 3], 24), tensor("b", "BF16", vec![5], 10), tensor("c", "I64", vec![], 8)])
    }

    #[test]
    fn a_valid_header_says_where_everything_lies() {
        let bytes = valid();
        let data = (bytes.len() - 42) as u64;
        let tensors = read(bytes).unwrap();
        let place = |name: &str| (tensors[name].start - data, tensors[name].len, tensors[name].shape.as_slice());
        assert_eq!(place("a"), (0, 24, [2, 3].as_slice()));
        assert_eq!(place("b"), (24, 10, [5].as_slice()));
        assert_eq!(place("c"), (34, 8, [].as_slice()));
        assert_eq!(tensors["c"].stored, Stored::Unreadable("I64".to_owned()));
    }

    #[test]
    fn a_header_that_cannot_be_there_is_refused_before_it_is_read() {
        for len in 0..8 {
            assert!(refused(vec![0; len]).contains("shorter than eight bytes"));
        }
        for claimed in [9, 1 << 20, 1 << 63, u64::MAX] {
            assert!(refused([&u64::to_le_bytes(claimed)[..], &[b' '; 8]].concat()).contains(&format!("claims {claimed} bytes")));
        }
    }

    #[test]
    fn headers_that_break_the_format_are_refused() {
        let nested = "[".repeat(100_000);
        let cases: [(&str, usize, &str); 12] = [
            ("", 0, "invalid safetensors header"),
            ("[]", 0, "invalid safetensors header"),
            (&nested, 0, "invalid safetensors header"),
            ("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "invalid safetensors header"),
            ("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "invalid safetensors header"),
            // A hole before, an overlap, an end before its start.
            ("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "invalid safetensors header"),
            (
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
                12,
                "invalid safetensors header",
            ),
            ("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,-4]}}", 4, "invalid safetensors header"),
            // A shape that is not its span, and one whose product overflows.
            ("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "invalid safetensors header"),
            ("{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775808,2],\"data_offsets\":[0,0]}}", 0, "invalid safetensors header"),
            // Truncated data, and bytes that belong to nothing.
            ("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, "describes 8 bytes of data, the file holds 7"),
            ("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, "describes 8 bytes of data, the file holds 9"),
        ];
        for (header, data, expected) in cases {
            let text = refused(safetensors_with(header, &vec![0; data]));
            assert!(text.contains(expected), "{header:.80}: {text}");
        }
        let mut not_utf8 = valid();
        not_utf8[10] = 0xff;
        assert!(refused(not_utf8).contains("invalid safetensors header"));
    }

    #[test]
    fn a_header_of_the_largest_size_takes_a_bounded_amount_of_memory() {
        // A shape is the most that a few bytes of JSON can be made to take.
        let zeros = "0,".repeat(LARGEST_HEADER as usize / 2 - 100);
        let header = format!("{{\"a\":{{\"dtype\":\"F32\",\"data_offsets\":[0,0],\"shape\":[{zeros}0]}}}}");
        assert!(header.len() as u64 <= LARGEST_HEADER);
        let bytes = safetensors_with(&header, &[]);
        let (_, memory) = peak_memory(|| read(bytes));
        assert!(memory < 100 << 20, "{memory} bytes");
        let bytes = safetensors_with(&" ".repeat(LARGEST_HEADER as usize + 1), &[]);
        assert!(refused(bytes).contains("at most 4194304 are read"));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let whole = valid();
        for len in 0..whole.len() {
            refused(whole[..len].to_vec());
        }
    }

    proptest! {
        /// Whatever bytes are changed, the reader neither panics nor accepts a tensor outside the file.
        #[test]
        fn damaged_files_are_read_or_refused(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = valid();
            for (at, byte) in damage {
                *at.get_mut(&mut bytes) = byte;
            }
            let len = bytes.len() as u64;
            if let Ok(tensors) = read(bytes) {
                prop_assert!(tensors.values().all(|entry| entry.start + entry.len as u64 <= len));
            }
        }
    }
}
