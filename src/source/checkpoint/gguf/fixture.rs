//! GGUF files for the tests, valid and otherwise.

use std::path::{Path, PathBuf};

/// What goes into a file, byte by byte.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    /// Keys with the bytes of their type and value.
    pub pairs: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
    pub data: Vec<u8>,
}

/// A tensor as the file describes it: innermost dimension first.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dimensions: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

impl Gguf {
    pub fn new() -> Self {
        Self { version: 3, pairs: Vec::new(), tensors: Vec::new(), alignment: 32, data: Vec::new() }
    }

    /// A Llama of one layer, 8 wide, with two heads and a vocabulary of four, in f32; `tensor` may change a tensor's
    /// values or drop it.
    pub fn llama(architecture: &str, tensor: impl Fn(&str, Vec<f32>) -> Option<Vec<f32>>) -> Self {
        let mut file = Self::new().text("general.architecture", architecture);
        let sizes = [("embedding_length", 8), ("feed_forward_length", 6), ("block_count", 1), ("context_length", 16)];
        for (key, value) in sizes.into_iter().chain([("attention.head_count", 2), ("attention.head_count_kv", 1)]) {
            file = file.u32(&format!("{architecture}.{key}"), value);
        }
        file = file.pair(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 6, &1e-5f32.to_le_bytes());
        for (name, shape) in [
            ("token_embd", vec![8, 4]),
            ("output_norm", vec![8]),
            ("blk.0.attn_q", vec![8, 8]),
            ("blk.0.attn_k", vec![8, 4]),
            ("blk.0.attn_v", vec![8, 4]),
            ("blk.0.attn_output", vec![8, 8]),
            ("blk.0.ffn_gate", vec![8, 6]),
            ("blk.0.ffn_up", vec![8, 6]),
            ("blk.0.ffn_down", vec![6, 8]),
            ("blk.0.attn_norm", vec![8]),
            ("blk.0.ffn_norm", vec![8]),
        ] {
            let name = format!("{name}.weight");
            let count = shape.iter().product::<u64>() as usize;
            if let Some(values) = tensor(&name, crate::testing::values(&name, count)) {
                file = file.floats(&name, &shape, &values);
            }
        }
        file.tokenizer("smollm", &["<|end|>", "a", "b", "ab"], &[3, 1, 1, 1], &["a b"])
    }

    pub fn tokenizer(self, pre: &str, tokens: &[&str], types: &[i32], merges: &[&str]) -> Self {
        let types: Vec<u8> = types.iter().flat_map(|kind| kind.to_le_bytes()).collect();
        self.text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", tokens)
            .array("tokenizer.ggml.token_type", 5, types.len() as u64 / 4, &types)
            .texts("tokenizer.ggml.merges", merges)
    }

    /// Adds a metadata entry, or replaces the one of that key.
    pub fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs.retain(|(other, _)| other != key);
        self.pairs.push((key.to_owned(), [&kind.to_le_bytes(), value].concat()));
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.pair(key, 4, &value.to_le_bytes())
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.pair(key, 8, &text(value))
    }

    pub fn array(self, key: &str, element: u32, count: u64, elements: &[u8]) -> Self {
        self.pair(key, 9, &[&element.to_le_bytes(), &count.to_le_bytes()[..], elements].concat())
    }

    pub fn texts(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        self.array(key, 8, values.len() as u64, &elements)
    }

    /// Adds a tensor after the others.
    pub fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, bytes: &[u8]) -> Self {
        let offset = self.data.len().next_multiple_of(self.alignment.max(1));
        self.data.resize(offset, 0);
        self.data.extend_from_slice(bytes);
        let (name, dimensions) = (name.to_owned(), dimensions.to_vec());
        self.tensors.push(Tensor { name, dimensions, kind, offset: offset as u64 });
        self
    }

    pub fn floats(self, name: &str, dimensions: &[u64], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, dimensions, 0, &bytes)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        for tensor in &self.tensors {
            bytes.extend(text(&tensor.name));
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            bytes.extend(tensor.dimensions.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(tensor.offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment.max(1)), 0);
        bytes.extend(&self.data);
        bytes
    }

    /// Writes `model.gguf` into a folder.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

/// A text as GGUF writes it: its length, its bytes.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
