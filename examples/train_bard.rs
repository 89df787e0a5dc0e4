//! Trains `bard`, the small Shakespearean Llama that is bundled with the program.
//!
//! `cargo run --release --no-default-features --example train_bard -- models/bard` reads
//! `tinyshakespeare.txt` in that folder and writes tokenizer, configs and weights beside it.
//! `--evaluate` prints the held-out bits per byte of the stored file instead; `--targets` writes `targets.jsonl`, what
//! the stored model says after twenty held-out passages, and the passages to `passages.jsonl`.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use burn::backend::{Autodiff, Flex};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams, Optimizer};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, IndexingUpdateOp, Int, Tensor, TensorData};
use clap::Parser;
use dlmi::model::{Llama, LlamaConfig, WeightSource, llama::transpose};
use half::f16;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, models::TrainerWrapper};

/// Inference, evaluation, and everything as wide as the vocabulary.
type Plain = Flex;
/// The same backend with gradients.
type Tracked = Autodiff<Flex>;

const END_OF_TEXT: &str = "<|endoftext|>";
/// Id of [`END_OF_TEXT`]: special tokens come first.
const END: u32 = 0;
const VOCABULARY: usize = 1536;
const WIDTH: usize = 256;
const LAYERS: usize = 4;
/// T, tokens in a window: the model's whole context.
const CONTEXT: usize = 256;
/// S, windows in a step.
const BATCH: usize = 24;
/// Threads that share the windows of a step.
const SHARDS: usize = 2;
const STEPS: usize = 750;
/// From this step on, half of the windows repeat a short segment.
const REPEATING_FROM: usize = 500;
const WARM_UP: usize = 40;
const LEARNING_RATE: f64 = 2e-3;
const FINAL_RATE: f64 = 0.02;
const DROPOUT: f64 = 0.1;
const INITIAL_STD: f64 = 0.02;
/// Share of the windows with a document's start in them.
const DOCUMENTS: f64 = 0.25;
const EVALUATE_EVERY: usize = 50;
/// New tokens of each evaluation window; the others are context.
const STRIDE: usize = CONTEXT / 2;
const SEED: u64 = 1564;

/// Inversion targets in the list.
const TARGETS: usize = 20;
/// Tokens of a target.
const TARGET_TOKENS: usize = 20;
/// Least number of different tokens in a target: a small model loops.
const DISTINCT: usize = 14;
/// Least number of tokens in a passage, which ends with its line.
const PASSAGE_TOKENS: usize = 40;

/// Trains or evaluates the bundled model.
#[derive(Parser)]
struct Arguments {
    /// Folder that holds `tinyshakespeare.txt` and receives the model.
    folder: PathBuf,
    /// Print the held-out bits per byte of the stored model.
    #[arg(long)]
    evaluate: bool,
    /// Write the list of inversion targets.
    #[arg(long, conflicts_with = "evaluate")]
    targets: bool,
    /// Steps of the schedule.
    #[arg(long, default_value_t = STEPS)]
    steps: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let text = std::fs::read_to_string(arguments.folder.join("tinyshakespeare.txt"))?;
    let (training, held_out) = split(&text);
    if arguments.evaluate {
        let held_out = HeldOut::new(&stored_tokenizer(&arguments.folder)?, held_out)?;
        println!("{:.4} bits per byte", held_out.bits_per_byte(&stored_model(&arguments.folder)?));
        return Ok(());
    }
    if arguments.targets {
        return write_targets(&arguments.folder, held_out, training.len());
    }
    let tokenizer = train_tokenizer(training)?;
    write_configs(&arguments.folder, &tokenizer)?;
    let corpus = Corpus::new(&tokenizer, training)?;
    train(&arguments.folder, arguments.steps, &corpus, &HeldOut::new(&tokenizer, held_out)?)
}

/// Training text and held-out text: the last tenth of the bytes, from the next line on.
fn split(text: &str) -> (&str, &str) {
    let tenth = text.len() / 10 * 9;
    let line = text.as_bytes()[tenth..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |at| tenth + at + 1);
    text.split_at(line)
}

/// Byte-level BPE in GPT-2's manner, trained on `text` alone.
fn train_tokenizer(text: &str) -> Result<Tokenizer> {
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(bytes)).with_post_processor(Some(bytes)).with_decoder(Some(bytes));
    tokenizer.train(&mut trainer, text.split_inclusive('\n')).map_err(|error| anyhow!(error))?;
    ensure!(tokenizer.get_vocab_size(true) == VOCABULARY, "the text is too short for {VOCABULARY} tokens");
    Ok(tokenizer)
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode(text, false).map_err(|error| anyhow!(error))?.get_ids().to_vec())
}

/// The training text as tokens.
struct Corpus {
    ids: Vec<u32>,
    /// Where paragraphs (speeches) start, after a blank line.
    paragraphs: Vec<usize>,
}

impl Corpus {
    fn new(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        let ids = encode(tokenizer, text)?;
        let newline = encode(tokenizer, "\n")?[0];
        let blank = |at: &usize| ids[at - 1] == newline && ids[at - 2] == newline;
        let paragraphs = (2..ids.len()).filter(blank).collect();
        Ok(Self { ids, paragraphs })
    }

    /// `CONTEXT + 1` tokens: running text, the end of one document and the start of the next, or a repeated segment.
    fn window(&self, rng: &mut StdRng, repeating: bool) -> Vec<u32> {
        let len = CONTEXT + 1;
        if repeating && rng.random_bool(0.5) {
            // Short segments as often as long ones: their logarithm is uniform.
            let segment = (8.0 * (len as f64 / 16.0).powf(rng.random())) as usize;
            let start = rng.random_range(0..self.ids.len() - segment);
            return self.ids[start..start + segment].iter().copied().cycle().take(len).collect();
        }
        if rng.random_bool(DOCUMENTS) {
            return self.seam(rng, len);
        }
        let start = rng.random_range(0..self.ids.len() - len);
        self.ids[start..start + len].to_vec()
    }

    /// The last tokens of some paragraph, [`END`], and another paragraph; half of the time nothing before [`END`].
    fn seam(&self, rng: &mut StdRng, len: usize) -> Vec<u32> {
        let before = if rng.random() { 0 } else { rng.random_range(0..len / 2) };
        let mut paragraph = || self.paragraphs[rng.random_range(0..self.paragraphs.len())];
        let end = paragraph().max(before);
        let start = paragraph().min(self.ids.len() - len);
        let tail = &self.ids[end - before..end];
        tail.iter().chain([&END]).chain(&self.ids[start..]).copied().take(len).collect()
    }
}

/// Windows of one shard of a step.
struct Batch {
    /// `[S, T]`.
    inputs: Tensor<Plain, 2, Int>,
    /// The tokens that follow, `[S·T, 1]`.
    targets: Tensor<Plain, 2, Int>,
}

impl Batch {
    fn new(windows: &[Vec<u32>]) -> Self {
        let s = windows.len();
        let ids = |offset: usize| windows.iter().flat_map(|w| &w[offset..offset + CONTEXT]).map(|&id| id as i32).collect::<Vec<_>>();
        let device = Default::default();
        Self {
            inputs: Tensor::from_data(TensorData::new(ids(0), [s, CONTEXT]), &device),
            targets: Tensor::from_data(TensorData::new(ids(1), [s * CONTEXT, 1]), &device),
        }
    }
}

/// Turns gradient tracking on: a loaded model is frozen.
struct Track;

impl ModuleMapper<Tracked> for Track {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Tracked, D>>) -> Param<Tensor<Tracked, D>> {
        param.set_require_grad(true)
    }
}

/// A copy with leaves of its own, so that shards do not share a graph.
fn trainable(model: &Llama<Plain>) -> Llama<Tracked> {
    Llama::from_inner(model.clone()).map(&mut Track)
}

fn train(folder: &Path, steps: usize, corpus: &Corpus, held_out: &HeldOut) -> Result<()> {
    let mut model = trainable(&initial_model()?);
    eprintln!("{} parameters, {} training tokens, {} held out", model.num_params(), corpus.ids.len(), held_out.ids.len());
    let clipping = GradientClippingConfig::Norm(1.0);
    let decay = AdamWConfig::new().with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(0.2);
    let mut optimiser = decay.with_grad_clipping(Some(clipping)).init::<Tracked, Llama<Tracked>>();
    let mut best = f64::INFINITY;
    let mut losses = Vec::new();
    let clock = Instant::now();
    for step in 0..steps {
        let repeating = step >= REPEATING_FROM.min(steps * 2 / 3);
        let (loss, gradients) = step_gradients(&model.valid(), corpus, step, repeating);
        model = optimiser.step(learning_rate(step, steps), model, gradients);
        losses.push(loss);
        if (step + 1) % 10 == 0 {
            let mean = losses.drain(..).sum::<f64>() / 10.0;
            eprintln!("step {:4}  loss {mean:.4}  {:.2} s per step", step + 1, clock.elapsed().as_secs_f64() / (step + 1) as f64);
        }
        if (step + 1) % EVALUATE_EVERY == 0 || step + 1 == steps {
            let bits = held_out.bits_per_byte(&model.valid());
            eprintln!("step {:4}  held out {bits:.4} bits per byte", step + 1);
            if bits < best {
                best = bits;
                save(&model.valid(), folder)?;
            }
        }
    }
    println!("{:.4} bits per byte", held_out.bits_per_byte(&stored_model(folder)?));
    Ok(())
}

/// Linear warm-up, then a cosine down to [`FINAL_RATE`] of the peak.
fn learning_rate(step: usize, steps: usize) -> f64 {
    if step < WARM_UP {
        return LEARNING_RATE * (step + 1) as f64 / WARM_UP as f64;
    }
    let done = (step - WARM_UP) as f64 / (steps - WARM_UP) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    LEARNING_RATE * (FINAL_RATE + (1.0 - FINAL_RATE) * cosine)
}

/// Mean loss of a step in nats per token, and the gradients of all weights. Element-wise operations run on one
/// thread, so each shard of the windows gets its own.
fn step_gradients(model: &Llama<Plain>, corpus: &Corpus, step: usize, repeating: bool) -> (f64, GradientsParams) {
    let shard = |index: usize| {
        let mut rng = StdRng::seed_from_u64(SEED + (step * SHARDS + index) as u64);
        let windows: Vec<_> = (0..BATCH / SHARDS).map(|_| corpus.window(&mut rng, repeating)).collect();
        gradients(&trainable(model), &Batch::new(&windows), &mut rng)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SHARDS).map(|index| scope.spawn(move || shard(index))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a shard panicked")).collect()
    });
    let mut sum = GradientsAccumulator::new();
    let names = trainable(model);
    let loss = parts.into_iter().fold(0.0, |loss, (part, gradients)| {
        sum.accumulate(&names, gradients);
        loss + part
    });
    (loss, sum.grads())
}

/// The shard's part of the mean loss, and its gradients. Nothing as wide as the vocabulary enters the graph: the
/// gradients of hidden states and head are worked out beside it, and a loss that is linear in both hands them on.
fn gradients(model: &Llama<Tracked>, batch: &Batch, rng: &mut StdRng) -> (f64, GradientsParams) {
    let x = model.embed(Tensor::from_inner(batch.inputs.clone()));
    let hidden = dropout(model.hidden(dropout(x, rng), CONTEXT), rng);
    let head = model.head();

    let (h, w) = (hidden.clone().inner(), head.clone().inner());
    let p = softmax(h.clone().matmul(w.clone().transpose()), 1);
    let tokens = BATCH * CONTEXT;
    let loss = p.clone().gather(1, batch.targets.clone()).log().sum().into_scalar() as f64 / -(tokens as f64);
    let minus_one = Tensor::full(batch.targets.dims(), -1.0, &h.device());
    let d_logits = p.scatter(1, batch.targets.clone(), minus_one, IndexingUpdateOp::Add) / tokens as f64;
    let d_hidden = d_logits.clone().matmul(w);
    let d_head = d_logits.transpose().matmul(h);

    let linear = (hidden * Tensor::from_inner(d_hidden)).sum() + (head * Tensor::from_inner(d_head)).sum();
    (loss, GradientsParams::from_grads(linear.backward(), model))
}

fn dropout<const R: usize>(x: Tensor<Tracked, R>, rng: &mut StdRng) -> Tensor<Tracked, R> {
    let kept = (1.0 / (1.0 - DROPOUT)) as f32;
    let mask: Vec<f32> = (0..x.shape().num_elements()).map(|_| if rng.random::<f32>() < DROPOUT as f32 { 0.0 } else { kept }).collect();
    let mask = Tensor::<Plain, R>::from_data(TensorData::new(mask, x.shape()), &x.device());
    x * Tensor::from_inner(mask)
}

/// The held-out text, never trained on.
struct HeldOut {
    /// [`END`], then the text.
    ids: Vec<u32>,
    bytes: usize,
}

impl HeldOut {
    fn new(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        let mut ids = vec![END];
        ids.extend(encode(tokenizer, text)?);
        Ok(Self { ids, bytes: text.len() })
    }

    /// Total surprise over the bytes of the text. Every token counts once: windows of [`CONTEXT`] tokens advance by
    /// [`STRIDE`], and of each but the first only the last [`STRIDE`] predictions count.
    fn bits_per_byte(&self, model: &Llama<Plain>) -> f64 {
        let last = self.ids.len() - 1;
        let starts: Vec<usize> = (0..).step_by(STRIDE).take_while(|start| *start == 0 || start + CONTEXT - STRIDE < last).collect();
        let nats: Vec<f64> = starts
            .into_par_iter()
            .map(|start| {
                let skip = if start == 0 { 0 } else { CONTEXT - STRIDE };
                nats(model, &self.ids[start..=last.min(start + CONTEXT)], skip)
            })
            .collect();
        nats.iter().sum::<f64>() / std::f64::consts::LN_2 / self.bytes as f64
    }
}

/// −log p of the tokens of `window` after its first one, leaving out the first `skip` predictions.
fn nats(model: &Llama<Plain>, window: &[u32], skip: usize) -> f64 {
    let device = Default::default();
    let t = window.len() - 1;
    let ids = |part: &[u32]| part.iter().map(|&id| id as i32).collect::<Vec<_>>();
    let inputs = Tensor::<Plain, 2, Int>::from_data(TensorData::new(ids(&window[..t]), [1, t]), &device);
    let targets = Tensor::<Plain, 2, Int>::from_data(TensorData::new(ids(&window[1 + skip..]), [t - skip, 1]), &device);
    let logits = model.logits(model.hidden(model.embed(inputs), t - skip));
    -log_softmax(logits, 1).gather(1, targets).sum().into_scalar() as f64
}

/// Finds a target for each of [`TARGETS`] equally spaced places of the held-out text, which starts at byte `origin` of
/// the file. A place is the next line start whose continuation qualifies.
fn write_targets(folder: &Path, held_out: &str, origin: usize) -> Result<()> {
    let (tokenizer, model) = (stored_tokenizer(folder)?, stored_model(folder)?);
    let (mut targets, mut passages, mut seen) = (String::new(), String::new(), HashSet::new());
    for index in 0..TARGETS {
        let id = format!("bard-{index:02}");
        let from = held_out.len() * index / TARGETS;
        let lines = held_out.match_indices('\n').map(|(at, _)| at + 1).skip_while(|&start| start < from);
        let (offset, passage, target) = lines
            .map(|offset| {
                let passage = passage(&tokenizer, &held_out[offset..])?;
                Ok((offset, passage, target(&tokenizer, &model, passage)?))
            })
            .find_map(|found: Result<_>| match found {
                Ok((offset, passage, Some(target))) => seen.insert(target.clone()).then_some(Ok((offset, passage, target))),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
            .with_context(|| format!("no target for {id}"))??;
        writeln!(targets, "{}", json!({ "id": id, "text": target.0, "ids": target.1 }))?;
        writeln!(passages, "{}", json!({ "id": id, "offset": origin + offset, "passage": passage }))?;
    }
    std::fs::write(folder.join("targets.jsonl"), targets)?;
    Ok(std::fs::write(folder.join("passages.jsonl"), passages)?)
}

/// The first lines of `text` that make [`PASSAGE_TOKENS`] tokens.
fn passage<'a>(tokenizer: &Tokenizer, text: &'a str) -> Result<&'a str> {
    for (at, _) in text.match_indices('\n') {
        if encode(tokenizer, &text[..=at])?.len() >= PASSAGE_TOKENS {
            return Ok(&text[..=at]);
        }
    }
    Err(anyhow!("the held-out text ends within a passage"))
}

/// What the model writes after `passage`, if it survives decoding and encoding, is varied, and stays in the document.
fn target(tokenizer: &Tokenizer, model: &Llama<Plain>, passage: &str) -> Result<Option<(String, Vec<u32>)>> {
    let ids = greedy(model, encode(tokenizer, passage)?, TARGET_TOKENS);
    let text = tokenizer.decode(&ids, false).map_err(|error| anyhow!(error))?;
    let varied = ids.iter().collect::<HashSet<_>>().len() >= DISTINCT;
    let qualifies = varied && !ids.contains(&END) && encode(tokenizer, &text)? == ids;
    Ok(qualifies.then_some((text, ids)))
}

/// The `count` most likely next tokens, one after the other.
fn greedy(model: &Llama<Plain>, prompt: Vec<u32>, count: usize) -> Vec<u32> {
    let mut ids = prompt;
    let start = ids.len();
    while ids.len() < start + count {
        let input = TensorData::new(ids.iter().map(|&id| id as i32).collect::<Vec<_>>(), [1, ids.len()]);
        let x = model.embed(Tensor::from_data(input, &Default::default()));
        let logits = model.logits(model.hidden(x, 1));
        ids.push(logits.argmax(1).into_scalar() as u32);
    }
    ids.split_off(start)
}

/// The architecture.
fn config() -> LlamaConfig {
    LlamaConfig {
        architecture: "LlamaForCausalLM".into(),
        vocab_size: VOCABULARY,
        hidden_size: WIDTH,
        intermediate_size: 640,
        num_hidden_layers: LAYERS,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        max_position_embeddings: CONTEXT,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        rope_layers: vec![true; LAYERS],
        tie_word_embeddings: true,
        attention_bias: false,
        attention_output_bias: false,
        query_key_norm: false,
        sliding_window: None,
        mlp_bias: false,
        bos_token_id: Some(END),
        eos_token_ids: vec![END],
    }
}

/// Everything but the weights, as transformers wants it.
fn write_configs(folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let c = config();
    tokenizer.save(folder.join("tokenizer.json"), false).map_err(|error| anyhow!(error))?;
    let model = json!({
        "architectures": [c.architecture],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": null,
        "tie_word_embeddings": c.tie_word_embeddings,
        "attention_bias": c.attention_bias,
        "mlp_bias": c.mlp_bias,
        "initializer_range": INITIAL_STD,
        "bos_token_id": END,
        "eos_token_id": END,
        "torch_dtype": "float16",
    });
    let text = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": null,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": CONTEXT,
    });
    let generation = json!({ "bos_token_id": END, "eos_token_id": END });
    write_json(&folder.join("config.json"), &model)?;
    write_json(&folder.join("tokenizer_config.json"), &text)?;
    write_json(&folder.join("generation_config.json"), &generation)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(value)? + "\n").with_context(|| format!("cannot write `{}`", path.display()))
}

fn stored_tokenizer(folder: &Path) -> Result<Tokenizer> {
    Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| anyhow!(error))
}

fn stored_model(folder: &Path) -> Result<Llama<Plain>> {
    let bytes = std::fs::read(folder.join("model.safetensors"))?;
    Ok(Llama::load(&config(), &mut Stored(SafeTensors::deserialize(&bytes)?), &Default::default(), DType::F32)?)
}

/// Normal weights; what is added to the residual stream starts smaller.
struct Initial;

fn initial_model() -> Result<Llama<Plain>> {
    let device = Default::default();
    Plain::seed(&device, SEED);
    Ok(Llama::load(&config(), &mut Initial, &device, DType::F32)?)
}

impl WeightSource for Initial {
    fn read(&mut self, name: &str, shape: &[usize]) -> dlmi::Result<Vec<f32>> {
        if name.ends_with("norm.weight") {
            return Ok(vec![1.0; shape[0]]);
        }
        let added = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
        let std = if added { INITIAL_STD / (2.0 * LAYERS as f64).sqrt() } else { INITIAL_STD };
        let values = Tensor::<Plain, 2>::random([shape[0], shape[1]], Distribution::Normal(0.0, std), &Default::default());
        values.into_data().to_vec().map_err(|error| dlmi::Error::environment(format!("{error:?}")))
    }
}

/// The stored file.
struct Stored<'a>(SafeTensors<'a>);

impl WeightSource for Stored<'_> {
    fn read(&mut self, name: &str, shape: &[usize]) -> dlmi::Result<Vec<f32>> {
        let tensor = self.0.tensor(name).map_err(|error| dlmi::Error::input(error.to_string()))?;
        if tensor.shape() != shape || tensor.dtype() != Dtype::F16 {
            return Err(dlmi::Error::input(format!("`{name}` is {:?} {:?}, not F16 {shape:?}", tensor.dtype(), tensor.shape())));
        }
        Ok(tensor.data().chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect())
    }
}

/// Collects weights under Hugging Face's names and in its orientation.
#[derive(Default)]
struct Export {
    path: Vec<String>,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

impl ModuleVisitor<Plain> for Export {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Plain, D>>) {
        let path = self.path.join(".");
        let mut shape = param.shape().to_vec();
        let mut values: Vec<f32> = param.val().into_data().to_vec().expect("weights are f32");
        let embedding = path == "embed_tokens";
        if D == 2 && !embedding {
            values = transpose(&values, shape[0], shape[1]);
            shape.reverse();
        }
        let name = if embedding { "model.embed_tokens.weight".into() } else { format!("model.{path}") };
        let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        self.tensors.push((name, shape, bytes));
    }
}

fn save(model: &Llama<Plain>, folder: &Path) -> Result<()> {
    let mut export = Export::default();
    model.visit(&mut export);
    let views: Vec<_> = export
        .tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), bytes)?)))
        .collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize_to_file(views, Some(metadata), &folder.join("model.safetensors"))?)
}
