//! Bad input: one sentence that names the thing, exit 2 or 3, and nothing else.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::support::*;

/// `complete` with the model in this folder or file.
fn complete_with(model: &Path) -> Command {
    let mut command = dlmi([Path::new("--model"), model]);
    command.args(["--backend", "flex", "complete", "in the"]);
    command
}

/// A copy of the tiny model with a spoilt part is refused.
#[track_caller]
fn spoilt(spoil: impl FnOnce(&Path), parts: &[&str]) {
    let model = tiny_copy();
    spoil(model.path());
    refuses(&mut complete_with(model.path()), 2, parts);
}

#[test]
fn a_model_that_is_not_there() {
    refuses(&mut dlmi(["--model", "bart", "complete", "x"]), 2, &["`bart`", "bard"]);
    refuses(&mut dlmi(["--model", "no/such/folder", "complete", "x"]), 2, &["`no/such/folder`"]);
    for file in ["models/missing.gguf", "./missing", "org/missing.safetensors"] {
        refuses(&mut dlmi(["--model", file, "complete", "x"]), 2, &[file, "there is no model"]);
    }
    refuses(&mut dlmi(["--model", "./nowhere", "complete", "x"]), 2, &["`./nowhere`"]);
    refuses(&mut dlmi(["--model", "", "complete", "x"]), 2, &["model"]);
    refuses(&mut dlmi(["models", "show", "nowhere.gguf"]), 2, &["nowhere.gguf"]);
    // One on the hub, without a network.
    refuses(&mut dlmi(["--model", "nobody/nothing", "complete", "x"]), 3, &["nobody/nothing", "HF_HUB_OFFLINE"]);
    refuses(dlmi(["--model", "nobody/nothing", "--offline", "complete", "x"]).env_remove("HF_HUB_OFFLINE"), 3, &["`offline` forbids"]);
    refuses(&mut dlmi(["models", "pull", "nobody/nothing"]), 3, &["nobody/nothing"]);
    refuses(&mut dlmi(["models", "pull", "nobody"]), 2, &["nobody", "org/name"]);
}

#[test]
fn a_model_with_a_part_missing() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        spoilt(|model| fs::remove_file(model.join(name)).unwrap(), &[name]);
    }
    let folder = folder();
    refuses(&mut complete_with(folder.path()), 2, &["config.json"]);
    fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    refuses(&mut complete_with(folder.path()), 2, &["adapter", "merge"]);
    let shard = "tests/golden/tiny/sharded/model-00001-of-00002.safetensors";
    refuses(&mut complete_with(Path::new(shard)), 2, &[shard, "one of several", "folder"]);
    let file = folder.path().join("weights.bin");
    fs::write(&file, "x").unwrap();
    refuses(&mut complete_with(&file), 2, &["weights.bin", ".safetensors"]);
    refuses(&mut complete_with(Path::new("/dev/null")), 2, &["/dev/null"]);
}

#[test]
fn a_weight_file_that_is_cut_or_longer_than_it_says() {
    let weights = |change: fn(&mut Vec<u8>)| {
        move |model: &Path| {
            let path = model.join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
        }
    };
    let name = ["model.safetensors"];
    spoilt(weights(|bytes| bytes.truncate(bytes.len() - 1)), &name);
    spoilt(weights(|bytes| bytes.truncate(1000)), &name);
    spoilt(weights(|bytes| bytes.truncate(7)), &name);
    spoilt(weights(Vec::clear), &name);
    spoilt(weights(|bytes| bytes.push(0)), &name);
    spoilt(weights(|bytes| bytes[..8].fill(0xff)), &name);
    spoilt(weights(|bytes| bytes[..8].fill(0)), &name);
    spoilt(weights(|bytes| bytes[8] = b'['), &name);
    spoilt(weights(|bytes| bytes[20] = 0xff), &name);
    // Infinity in the last value, which only reading the values can tell.
    spoilt(weights(|bytes| bytes.splice(bytes.len() - 2.., [0x00, 0x7c]).for_each(drop)), &["not finite", "1 value"]);
}

#[test]
fn a_weight_file_whose_header_lies() {
    let header = |change: fn(&mut Value)| move |model: &Path| edit_header(model.join("model.safetensors"), change);
    const NORM: &str = "model.norm.weight";
    spoilt(header(|header| header[NORM]["shape"] = json!([47])), &["model.safetensors"]);
    spoilt(header(|header| header[NORM]["shape"] = json!([24, 2])), &[NORM]);
    spoilt(header(|header| header[NORM]["shape"] = json!([u64::MAX, 2])), &["model.safetensors"]);
    spoilt(header(|header| header[NORM]["shape"] = json!([-1])), &["model.safetensors"]);
    spoilt(header(|header| header[NORM]["dtype"] = json!("F32")), &["model.safetensors"]);
    spoilt(header(|header| header[NORM]["dtype"] = json!("I16")), &[NORM, "I16"]);
    spoilt(header(|header| header[NORM]["dtype"] = json!("F7")), &["model.safetensors"]);
    spoilt(header(|header| header[NORM]["data_offsets"] = json!([0, 96])), &["model.safetensors"]);
    spoilt(header(|header| header[NORM]["data_offsets"] = json!([96, 0])), &["model.safetensors"]);
    spoilt(header(|header| header[NORM]["data_offsets"] = json!([0, u64::MAX])), &["model.safetensors"]);
    spoilt(header(|header| drop(header.as_object_mut().unwrap().remove(NORM))), &["model.safetensors"]);
    // A name that would act on a terminal is shown, not sent.
    spoilt(
        header(|header| {
            let norm = header.as_object_mut().unwrap().remove(NORM).unwrap();
            header["model.\u{1b}[31mnorm"] = norm;
        }),
        &[NORM, "missing", "unused"],
    );
}

#[test]
fn a_config_that_disagrees_with_the_weights_or_with_itself() {
    let config = |key: &'static str, value: Value| move |model: &Path| edit(model.join("config.json"), |config| config[key] = value);
    spoilt(config("num_hidden_layers", json!(3)), &["missing", "model.layers.2."]);
    spoilt(config("num_hidden_layers", json!(1)), &["unused", "model.layers.1."]);
    spoilt(config("vocab_size", json!(300)), &["model.embed_tokens.weight", "[300, 48]", "[288, 48]"]);
    spoilt(config("intermediate_size", json!(65)), &["mlp", "65"]);
    spoilt(config("tie_word_embeddings", json!(false)), &["lm_head.weight", "missing"]);
    spoilt(config("attention_bias", json!(true)), &["bias", "missing"]);
    spoilt(config("num_key_value_heads", json!(4)), &["num_key_value_heads"]);
    spoilt(config("hidden_size", json!(1_000_000_000_000_u64)), &["hidden_size"]);
    spoilt(config("hidden_size", json!("48")), &["hidden_size"]);
    spoilt(config("architectures", json!(["GPT2LMHeadModel"])), &["GPT2LMHeadModel", "LlamaForCausalLM"]);
    spoilt(config("hidden_act", json!("gelu")), &["hidden_act", "gelu"]);
    spoilt(|model| fs::write(model.join("config.json"), "{").unwrap(), &["config.json", "JSON"]);
    spoilt(|model| fs::write(model.join("config.json"), b"\xff").unwrap(), &["config.json", "UTF-8"]);
}

#[test]
fn a_tokenizer_that_does_not_fit_or_is_none() {
    let path = |model: &Path| model.join("tokenizer.json");
    spoilt(|model| edit(path(model), |tokenizer| tokenizer["model"]["vocab"]["more"] = json!(288)), &["tokenizer", "289", "288"]);
    spoilt(|model| fs::write(path(model), "{}").unwrap(), &["tokenizer.json"]);
    spoilt(|model| edit(path(model), |tokenizer| tokenizer["model"]["dropout"] = json!(0.5)), &["tokenizer.json", "dropout"]);
}

/// Whatever stands behind the name, the answer is a sentence. (What is wrong with a GGUF is tested where it is read.)
#[test]
fn a_gguf_of_garbage() {
    let folder = folder();
    let file = folder.path().join("garbage.gguf");
    for bytes in [&b"\x00\xffgarbage"[..], b"GGUF", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b""]
    {
        fs::write(&file, bytes).unwrap();
        refuses(&mut complete_with(&file), 2, &["garbage.gguf"]);
    }
}

#[test]
fn a_target_that_is_empty_or_absent() {
    refuses(&mut tiny(["invert", ""]), 2, &["target", "empty"]);
    refuses(tiny(["invert", "-"]).write_stdin(""), 2, &["target", "empty"]);
    refuses(tiny(["invert", "-"]).write_stdin("\n"), 2, &["target", "empty"]);
    refuses(&mut tiny(["invert"]), 2, &["target", "--file"]);
    refuses(&mut tiny(["invert", "--file", "no-such-file.txt"]), 2, &["no-such-file.txt"]);
    refuses(&mut tiny(["score", "x", ""]), 2, &["target", "empty"]);
    refuses(&mut tiny(["score", "", "x"]), 2, &["prompt", "empty"]);
    refuses(&mut tiny(["score", "x"]), 2, &["TARGET"]);
    refuses(&mut tiny(["complete", ""]), 2, &["prompt", "empty"]);
}

#[cfg(unix)]
#[test]
fn text_that_is_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let bytes = b"in th\xe9 sand";
    let odd = OsStr::from_bytes(bytes);
    let place = ["UTF-8", "byte 5", "0xe9"];
    refuses(tiny(["invert"]).arg(odd), 2, &place);
    refuses(tiny(["complete"]).arg(odd), 2, &place);
    refuses(tiny(["score", "x"]).arg(odd), 2, &place);
    refuses(tiny(["invert", "x", "--prefix"]).arg(odd), 2, &[&place[..], &["--prefix"]].concat());
    refuses(tiny(["invert", "-"]).write_stdin(bytes), 2, &[&place[..], &["standard input"]].concat());
    refuses(tiny(["invert", "x"]).env("DLMI_PREFIX", odd), 2, &[&place[..], &["DLMI_PREFIX"]].concat());
    let folder = folder();
    let file = folder.path().join("latin1.txt");
    fs::write(&file, bytes).unwrap();
    refuses(tiny(["invert", "--file"]).arg(&file), 2, &[&place[..], &["latin1.txt"]].concat());
    refuses(tiny(["invert", "x", "-c"]).arg(&file), 2, &[&place[..], &["latin1.txt"]].concat());
}

#[test]
fn more_than_the_context_holds() {
    let context = TINY_CONTEXT.to_string();
    refuses(&mut tiny(["invert", "x", "--prompt-tokens", "256"]), 2, &["256 tokens", "257", &context]);
    refuses(tiny(["invert", "-"]).write_stdin("word ".repeat(100_000)), 2, &["context", &context]);
    refuses(tiny(["complete", "-"]).write_stdin("word ".repeat(100_000)), 2, &["the prompt has 500000 bytes", "context", &context]);
    refuses(tiny(["score", "x", "-"]).write_stdin("word ".repeat(100_000)), 2, &["the target has 500000 bytes", "context", &context]);
    refuses(&mut tiny(["invert", "x", "--prefix", &"12".repeat(250)]), 2, &["context", &context]);
    refuses(&mut tiny(["complete", "x", "--tokens", "256"]), 2, &["context", &context]);
    refuses(&mut tiny(["score", "x", &"12".repeat(300)]), 2, &["context", &context]);
    // To the last position it works.
    let ran = run(&mut tiny(["complete", "x", "--tokens", "255", "--json"]));
    assert_eq!(ids(&ran.json()["completion_ids"]).len(), 255);
}

/// Counted before it is tokenised, which would take a gigabyte.
#[cfg(target_os = "linux")]
#[test]
fn ten_megabytes_are_refused_in_little_memory() {
    let folder = folder();
    let (text, list) = (folder.path().join("text.txt"), folder.path().join("list.jsonl"));
    fs::write(&text, "word ".repeat(2_000_000)).unwrap();
    fs::write(&list, format!("{}\n", json!({ "text": "word ".repeat(2_000_000) }))).unwrap();
    for (option, file) in [("--file", &text), ("--targets", &list)] {
        let mut command = limited("-v 1000000", ["--model", TINY, "--backend", "flex", "invert", option]);
        refuses(command.env("RAYON_NUM_THREADS", "2").arg(file), 2, &["the target has 10000000 bytes", "256 tokens", "3328"]);
    }
}

/// From where the program starts at all to where it has enough, limit by limit: the answer, or one sentence and exit code 3.
#[cfg(target_os = "linux")]
#[test]
fn no_memory_left_is_one_sentence_wherever_it_ends() {
    let under = |limit: usize, arguments: &[&str]| {
        // The loader's words, where there is not even room for the program, need not be UTF-8's.
        let output = limited(&format!("-v {limit}"), arguments).env("RAYON_NUM_THREADS", "2").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let work = ["--backend", "flex", "complete", "ROMEO:"];
    let least = (20_000..).step_by(4_000).find(|&limit| under(limit, &["--version"]).0 == Some(0)).unwrap();
    let mut refused = 0;
    for limit in (least..).step_by(1_000) {
        let (code, err) = under(limit, &work);
        match code {
            Some(0) => break,
            _ => assert_eq!((code, err.lines().count()), (Some(3), 1), "{limit} KiB: {err}"),
        }
        refused += usize::from(err.contains("out of memory"));
    }
    assert!(refused > 0);
}

/// Nothing is read without end, and nothing is waited for without a word.
#[cfg(unix)]
#[test]
fn files_that_never_end() {
    let zero = "/dev/zero";
    refuses(&mut tiny(["invert", "x", "-c", zero]), 2, &[zero, "1048576 bytes"]);
    refuses(&mut tiny(["invert", "--file", zero]), 2, &[zero, "67108864 bytes"]);
    refuses(&mut tiny(["invert", "--targets", zero]), 2, &[zero, "67108864 bytes"]);
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let model = tiny_copy();
        fs::remove_file(model.path().join(name)).unwrap();
        std::os::unix::fs::symlink(zero, model.path().join(name)).unwrap();
        refuses(dlmi(["models", "show"]).arg(model.path()), 2, &[name, "not a regular file"]);
    }
}

/// A pipe is as good as a file, and one that nobody writes is spoken of.
#[cfg(unix)]
#[test]
fn pipes_are_read_and_waited_for() {
    let folder = folder();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let writer = {
        let pipe = pipe.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(2500));
            fs::write(pipe, "seed = 7\n").unwrap();
        })
    };
    let ran = run(tiny(["config", "show", "--json", "-c"]).arg(&pipe));
    writer.join().unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.starts_with("warning: waiting for `") && ran.err.contains("pipe"), "{ran:?}");
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["seed"]["value"], 7, "{ran:?}");

    let model = tiny_copy();
    fs::remove_file(model.path().join("config.json")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(model.path().join("config.json")).status().unwrap().success());
    refuses(dlmi(["models", "show"]).arg(model.path()), 2, &["config.json", "not a regular file"]);
}

#[test]
fn ids_that_are_no_tokens() {
    for id in ["288", "4294967295"] {
        refuses(&mut tiny(["complete", "--ids", &format!("1,{id}")]), 2, &[id, "287"]);
    }
    refuses(&mut tiny(["score", "--prompt-ids", "1", "--target-ids", "288"]), 2, &["target", "288", "287"]);
    refuses(&mut tiny(["score", "--prompt-ids", "288", "--target-ids", "1"]), 2, &["prompt", "288", "287"]);
    for list in ["4294967296", "-1", "1,,2", "x", ""] {
        refuses(&mut tiny(["complete", &format!("--ids={list}")]), 2, &["--ids"]);
    }
}

#[test]
fn a_start_token_that_does_not_exist() {
    let model = tiny_copy();
    edit(model.path().join("config.json"), |config| config["bos_token_id"] = Value::Null);
    edit(model.path().join("tokenizer.json"), |tokenizer| {
        tokenizer["added_tokens"] = json!([]);
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.remove("<|endoftext|>");
    });
    refuses(complete_with(model.path()).arg("--bos"), 2, &["--bos"]);
}

#[test]
fn names_that_do_not_exist() {
    refuses(&mut tiny(["invert", "x", "--method", "snpa"]), 2, &["--method", "snpa", "snap"]);
    refuses(&mut dlmi(["--backend", "metal", "complete", "x"]), 2, &["--backend", "metal", "flex"]);
    refuses(&mut tiny(["invert", "x", "--preset", "papre"]), 2, &["papre", "`paper`"]);
    refuses(&mut tiny(["invert", "x", "--set", "stepps=3"]), 2, &["stepps", "`steps`"]);
    refuses(&mut tiny(["invert", "x", "--set", "batch=3"]), 2, &["`--set batch`", "`snap.batch`"]);
}

#[test]
fn usage_that_is_wrong() {
    refuses(&mut tiny(["invert", "x", "--promt-tokens", "3"]), 2, &["--promt-tokens", "--prompt-tokens"]);
    refuses(&mut dlmi(["invret"]), 2, &["invret", "invert"]);
    refuses(&mut dlmi(["invert", "one", "two"]), 2, &["two"]);
    refuses(&mut dlmi(["invert", "x", "--resume"]), 2, &["--out"]);
    refuses(&mut dlmi(["invert", "x", "--file", "y"]), 2, &["--file"]);
    refuses(&mut dlmi(["complete"]), 2, &["PROMPT"]);
    refuses(&mut dlmi(["complete", "x", "--tokens", "0"]), 2, &["--tokens", "0"]);
    refuses(&mut dlmi(["doctor", "-q", "-v"]), 2, &["--quiet", "--verbose"]);
    refuses(&mut dlmi(["--dtype", "f8", "complete", "x"]), 2, &["--dtype", "f8", "f32"]);
    refuses(&mut dlmi(["completions", "csh"]), 2, &["csh", "bash"]);
    refuses(&mut dlmi(["invert", "x", "--bad\u{1b}[31m"]), 2, &["--bad"]);
}

#[test]
fn numbers_out_of_range() {
    for (flag, value) in [
        ("--prompt-tokens", "0"),
        ("--prompt-tokens", "5000"),
        ("--steps", "0"),
        ("--steps", "-1"),
        ("--restarts", "-1"),
        ("--max-seconds", "0"),
        ("--max-seconds", "nan"),
        ("--max-seconds", "inf"),
        ("--seed", "4294967296"),
        ("--device", "-1"),
    ] {
        refuses(&mut tiny(["invert", "x", flag, value]), 2, &[flag, value]);
    }
    refuses(&mut tiny(["invert", "x", "--method", "dlmi", "--samples", "0"]), 2, &["--samples", "0"]);
}

#[test]
fn a_device_that_is_not_there() {
    for arguments in [&["--device", "99"][..], &["--backend", "flex", "--device", "99"]] {
        refuses(dlmi(["--model", TINY, "complete", "x"]).args(arguments), 3, &["99", "doctor"]);
    }
}

#[test]
fn a_cpu_computes_in_f32_only() {
    for backend in ["flex", "ndarray"].into_iter().filter(|backend| *backend == "flex" || cfg!(feature = "ndarray")) {
        for dtype in ["f16", "bf16"] {
            let on = ["--model", TINY, "--backend", backend, "--dtype", dtype];
            refuses(dlmi(on).args(["complete", "x"]), 2, &[dtype, "GPU", backend]);
            refuses(dlmi(on).args(["invert", "x"]), 2, &[dtype, "GPU", backend]);
            refuses(dlmi(on).args(["bench", "step"]), 2, &[dtype, "GPU", backend]);
        }
    }
}

/// Not compiled in, or in sight of no driver: the same for who asks.
#[test]
fn a_backend_that_is_not_there() {
    for (backend, compiled) in [("cuda", cfg!(feature = "cuda")), ("wgpu", cfg!(feature = "wgpu")), ("ndarray", cfg!(feature = "ndarray"))]
    {
        if backend == "ndarray" && compiled {
            continue;
        }
        let mut command = dlmi(["--model", TINY, "--backend", backend, "complete", "x"]);
        command.env("CUDA_VISIBLE_DEVICES", "").env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
        let sentence = refusal(&mut command, 3);
        assert!(sentence.contains(backend), "{sentence}");
        assert!(compiled || sentence.contains(&format!("--features {backend}")), "{sentence}");
    }
}

#[test]
fn an_out_folder_that_cannot_be_written() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let run = file.join("run");
    refuses(tiny(["invert", "x", "--out"]).arg(&run), 3, &["cannot write", &run.display().to_string()]);
    refuses(tiny(["invert", "x", "--out"]).arg(&file), 2, &["--out", &file.display().to_string(), "is a file; name a folder"]);
}
