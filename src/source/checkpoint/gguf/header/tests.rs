//! Headers, whole and hostile.

use super::super::fixture::Gguf;
use super::*;
use crate::testing::{golden, peak_memory};
use candle_core::quantized::gguf_file::Content;
use proptest::prelude::*;

fn read(bytes: Vec<u8>) -> Result<Header> {
    Header::read(&mut Source::embedded("attack.gguf", bytes.leak()))
}

/// The sentence with which a file is refused.
fn refused(bytes: Vec<u8>) -> String {
    let (result, memory) = peak_memory(|| read(bytes));
    assert!(memory < 1 << 20, "{memory} bytes");
    let error = result.err().expect("the file should be refused");
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.starts_with("`attack.gguf` ") && !text.contains('\n'), "{text}");
    text
}

/// A small valid file: one pair, one tensor of two values.
fn valid() -> Gguf {
    Gguf::new().u32("a.number", 7).floats("t", &[2], &[1.0, -2.0])
}

#[test]
fn a_valid_file_is_read() {
    let header = read(valid().texts("a.list", &["x", "", "é"]).pair("pi", 12, &3.25f64.to_le_bytes()).bytes()).unwrap();
    assert_eq!(header.scalar("a.number").unwrap(), Some(&Value::from(7)));
    assert_eq!(header.scalar("pi").unwrap(), Some(&Value::from(3.25)));
    assert_eq!(header.texts("a.list").unwrap(), ["x", "", "é"]);
    assert_eq!(header.scalar("absent").unwrap(), None);
    assert!(header.scalar("a.list").is_err() && header.text("a.number").is_err() && header.texts("a.number").is_err());
    let [tensor] = header.tensors.as_slice() else { panic!("one tensor") };
    assert_eq!((tensor.name.as_str(), tensor.shape.as_slice(), tensor.len), ("t", [2].as_slice(), 8));
}

#[test]
fn numbers_keep_the_decimal_that_was_meant() {
    let float = |value: f32| read(valid().pair("x", 6, &value.to_le_bytes()).bytes()).unwrap().scalar("x").unwrap().cloned();
    assert_eq!(float(1e-5), Some(Value::from(1e-5)));
    assert_eq!(float(100_000.0), Some(Value::from(100_000.0)));
    // Not a number, so whoever wants one refuses it.
    assert_eq!(float(f32::NAN), Some(Value::from("NaN")));
}

#[test]
fn what_is_no_gguf_file_is_refused() {
    assert!(refused(Vec::new()).contains("is not a GGUF file"));
    assert!(refused(b"GGU".to_vec()).contains("is not a GGUF file"));
    assert!(refused(b"PK\x03\x04".repeat(9)).contains("is not a GGUF file"));
    for (version, shown) in
        [(1, "GGUF version 1;"), (4, "GGUF version 4;"), (3 << 24, "is a big-endian GGUF"), (4 << 24, "GGUF version 67108864;")]
    {
        assert!(refused(Gguf { version, ..valid() }.bytes()).contains(shown));
    }
}

#[test]
fn counts_of_2_to_the_63_are_refused_without_memory() {
    for (at, what) in [(8, "tensors"), (16, "metadata entries")] {
        for (claimed, why) in [(1u64 << 63, "at most 65536"), (u64::MAX, "at most 65536"), (1000, "bytes can hold")] {
            let mut bytes = valid().bytes();
            bytes[at..at + 8].copy_from_slice(&claimed.to_le_bytes());
            let text = refused(bytes);
            assert!(text.contains(&format!("claims {claimed} {what}")) && text.contains(why), "{text}");
        }
    }
}

#[test]
fn arrays_longer_than_the_file_are_refused_without_memory() {
    for count in [1u64 << 63, 1 << 61, u64::MAX, 1 << 20] {
        for element in [0, 4, 8, 12] {
            let text = refused(Gguf::new().array("a.list", element, count, &[0; 16]).bytes());
            assert!(text.contains("elements of `a.list`"), "{text}");
        }
    }
    // Each text of the array claims to be longer than what is left.
    let text = refused(Gguf::new().array("a.list", 8, 1, &(1u64 << 62).to_le_bytes()).bytes());
    assert!(text.contains("bytes of text"), "{text}");
}

#[test]
fn nested_arrays_and_unknown_types_are_refused() {
    let nested = Gguf::new().array("a.list", 9, 1, &[4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
    assert!(refused(nested.bytes()).contains("nested arrays"));
    assert!(refused(Gguf::new().pair("a.key", 99, &[0; 8]).bytes()).contains("unknown metadata type 99"));
}

#[test]
fn an_alignment_of_zero_or_2_to_the_30_is_refused() {
    for alignment in [0u32, 1 << 30, 1 << 21, 48] {
        assert!(refused(valid().u32("general.alignment", alignment).bytes()).contains("general.alignment"));
    }
    for pair in [valid().text("general.alignment", "32"), valid().array("general.alignment", 4, 1, &[32, 0, 0, 0])] {
        assert!(refused(pair.bytes()).contains("general.alignment"));
    }
    let mut wide = Gguf { alignment: 256, ..Gguf::new() }.u32("general.alignment", 256);
    wide = wide.floats("a", &[1], &[1.0]).floats("b", &[1], &[2.0]);
    assert_eq!(read(wide.bytes()).unwrap().tensors[1].start % 256, 0);
}

#[test]
fn impossible_shapes_are_refused() {
    let cases: [(&[u64], &str); 6] = [
        (&[1 << 63, 2], "impossible shape"),
        (&[u64::MAX], "impossible shape"),
        (&[1 << 32, 1 << 32], "impossible shape"),
        (&[0], "impossible shape"),
        (&[1, 1, 1, 1, 1], "5 dimensions"),
        (&[1 << 40], "lies past its end"),
    ];
    for (dimensions, expected) in cases {
        let mut file = valid();
        file.tensors[0].dimensions = dimensions.to_vec();
        let text = refused(file.bytes());
        assert!(text.contains(expected) && text.contains("`t`"), "{text}");
    }
    // Rows that are not whole blocks.
    assert!(refused(Gguf::new().tensor("t", &[16, 2], 2, &[0; 18]).bytes()).contains("impossible shape"));
}

#[test]
fn offsets_past_the_end_unaligned_or_overlapping_are_refused() {
    for (offset, expected) in [(1u64 << 62, "past its end"), (u64::MAX - 31, "past its end"), (64, "past its end"), (4, "multiple")] {
        let mut file = valid();
        file.tensors[0].offset = offset;
        let text = refused(file.bytes());
        assert!(text.contains(expected), "{offset}: {text}");
    }
    let mut file = valid().floats("u", &[32], &[0.0; 32]).floats("v", &[2], &[0.0; 2]);
    file.tensors[2].offset = file.tensors[1].offset + 32;
    assert!(refused(file.bytes()).contains("`u` and `v` over each other"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = valid().texts("a.list", &["x", "y"]).bytes();
    for len in 0..whole.len() {
        refused(whole[..len].to_vec());
    }
}

#[test]
fn names_that_occur_twice_or_are_not_text_are_refused() {
    let mut twice = valid();
    twice.pairs.push(twice.pairs[0].clone());
    assert!(refused(twice.bytes()).contains("`a.number` twice"));
    let mut bytes = valid().bytes();
    let at = bytes.windows(8).position(|window| window == b"a.number").unwrap();
    bytes[at] = 0xff;
    assert!(refused(bytes).contains("not UTF-8"));
}

#[test]
fn a_name_cannot_write_to_the_terminal() {
    let mut file = valid();
    file.tensors[0].name = "\u{1b}]52;c;\u{7}".repeat(40);
    file.tensors[0].offset = 4;
    assert!(!refused(file.bytes()).contains(['\u{1b}', '\u{7}']));
}

#[test]
fn candle_reads_the_same_from_files_of_ggufs_own_writer() {
    for name in ["gqa3-tied.f32", "gqa4-untied-llama3.q5_1", "kquants"] {
        let path = golden(&format!("tiny_gguf/{name}.gguf"));
        let header = Header::read(&mut Source::open(&path).unwrap()).unwrap();
        let content = Content::read(&mut std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(header.tensors.len(), content.tensor_infos.len());
        assert_eq!(header.metadata.len(), content.metadata.len());
        for tensor in &header.tensors {
            let other = &content.tensor_infos[&tensor.name];
            assert_eq!(tensor.shape, other.shape.dims());
            assert_eq!(tensor.start, content.tensor_data_offset + other.offset);
        }
        let tokens = content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
        let tokens: Vec<&String> = tokens.iter().map(|token| token.to_string().unwrap()).collect();
        assert_eq!(header.texts("tokenizer.ggml.tokens").unwrap(), tokens);
    }
}

proptest! {
    /// Whatever bytes are changed, the reader neither panics nor accepts a tensor outside the file.
    #[test]
    fn damaged_files_are_read_or_refused(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        len in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = Gguf::llama("llama", |_, values| Some(values)).bytes();
        for (at, byte) in damage {
            *at.get_mut(&mut bytes) = byte;
        }
        // Half of the files are cut as well.
        let len = len.index(2 * bytes.len()).min(bytes.len());
        bytes.truncate(len);
        if let Ok(header) = read(bytes) {
            prop_assert!(header.tensors.iter().all(|tensor| tensor.start + tensor.len as u64 <= len as u64));
            let _ = super::super::vocabulary::tokenizer(&header);
        }
    }
}
