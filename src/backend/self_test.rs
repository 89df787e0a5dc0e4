//! A GPU that enumerates can still crash, hang or compute nonsense, and Burn then panics on a thread that nobody
//! can catch. So the program runs itself again as a child, on samples of what it computes, and believes only its answer.

use std::io::Read;
use std::panic::{PanicHookInfo, catch_unwind, set_hook};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor, TensorData};

use super::{BackendName, DeviceInfo, DeviceKind, Dtype, Health, Job, dispatch};
use crate::noise::{Clock, Purpose};
use crate::ops::{Kernels, Plain, TrackedBackend};
use crate::setting;

/// Tells a child which device to test, and keeps a program that never calls [`child`] from starting itself for ever.
const ORDER: &str = "DLMI_SELF_TEST";
/// Begins the lines of the child that its parent reads.
const MARK: &str = "self-test: ";
const SOUND: &str = "sound, deviation ";
/// Compiling and tuning the first kernels takes seconds on a GPU, a minute for a software renderer on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);
/// Largest deviation from flex over the largest value. Products in TF32 and f16 deviate by about 1e-3, in bf16 by 4e-3.
const TOLERANCE: f32 = 1e-2;
/// The same of what is computed in f32 whatever the type, without a product.
const FINE: f32 = 1e-5;

/// Has a child process compute on `device` in `dtype` and compare with flex in f32. Takes seconds.
pub fn self_test(device: &DeviceInfo, dtype: Dtype) -> Health {
    if !STARTED.load(Ordering::Relaxed) {
        return Health::Broken(
            "this program does not call `dlmi::backend::on_start` first in `main`, so no child of it can test a GPU".into(),
        );
    }
    match std::env::current_exe() {
        Ok(program) => test_with(Command::new(program), device, dtype, LIMIT),
        Err(error) => Health::Broken(format!("the program cannot find itself: {error}")),
    }
}

// `child` and `judge` are inline so that every backend's kernels are compiled with the binary that calls them, and
// not also with this library and its tests.

/// Set once [`child`] was asked: only then does a child of this program end before its `main` goes on.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Does the test and returns the exit code, if this process is a child of [`self_test`].
#[inline]
pub(super) fn child() -> Option<ExitCode> {
    started();
    let order = std::env::var(ORDER).ok()?;
    // The first panic is the cause, whichever thread it is on; what follows from it only confuses.
    set_hook(Box::new(|panic| say(&panic_message(panic))));
    Some(match catch_unwind(|| judge(&order)) {
        Ok(Ok(deviation)) => {
            say(&format!("{SOUND}{deviation:e}"));
            ExitCode::SUCCESS
        }
        Ok(Err(reason)) => {
            say(&reason);
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    })
}

fn started() {
    STARTED.store(true, Ordering::Relaxed);
}

fn say(message: &str) {
    eprintln!("{MARK}{}", message.split_whitespace().collect::<Vec<_>>().join(" "));
}

fn panic_message(panic: &PanicHookInfo) -> String {
    panic.payload_as_str().unwrap_or("a panic without a message").to_owned()
}

/// The child's part: the largest deviation of the device from flex, over the largest value.
#[inline]
fn judge(order: &str) -> Result<f32, String> {
    let (device, dtype) = parse(order).ok_or_else(|| format!("no such device or type: `{order}`"))?;
    let flex = DeviceInfo::new(BackendName::Flex, DeviceKind::Cpu, 0, "");
    let got = dispatch(&device, Samples(dtype))?;
    let expected = dispatch(&flex, Samples(Dtype::F32))?;
    got.iter().zip(&expected).map(|(got, expected)| deviation(got, &expected.values)).try_fold(0.0, |most, of| Ok(of?.max(most)))
}

/// What a device computed of a kind of operation.
struct Sample {
    what: &'static str,
    /// Deviation, over the largest value, that is still right.
    tolerance: f32,
    values: Vec<f32>,
}

/// The largest difference of a sample's numbers, over the largest of them.
fn deviation(got: &Sample, expected: &[f32]) -> Result<f32, String> {
    let Sample { what, tolerance, values: got } = got;
    let scale = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // `max` would pass over NaN.
    let worst = worst.fold(0f32, |max, gap| if gap > max || gap.is_nan() { gap } else { max });
    if got.len() == expected.len() && worst / scale <= *tolerance {
        return Ok(worst / scale);
    }
    Err(format!("a {what} is wrong by {worst:.1e} where the largest value is {scale:.1e}"))
}

fn order(device: &DeviceInfo, dtype: Dtype) -> String {
    format!("{} {} {} {dtype}", device.backend, device.kind.as_str(), device.index)
}

fn parse(order: &str) -> Option<(DeviceInfo, Dtype)> {
    let mut words = order.split(' ');
    let backend: BackendName = setting::named(words.next()?)?;
    let kind = words.next()?;
    let kind = DeviceKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    let index = words.next()?.parse().ok()?;
    let dtype = setting::named(words.next()?)?;
    let known = backend.compiled() && backend != BackendName::Auto;
    known.then(|| (DeviceInfo::new(backend, kind, index, ""), dtype))
}

/// Samples of what a pass consists of, in this type. For x `[N, D]` and W `[V, D]`: y = x·Wᵀ with W as a transposed view, as the language
/// model head does it, and the gradient of Σy²/SHRINK by x, which is 2·y·W/SHRINK. Of W as N long rows the softmax and the maxima, by which
/// threads of a GPU must work together; and some of its rows. Gumbel noise of two samples, whose rows end within a block of draws. Where the
/// first of the largest is in rows of whole numbers.
struct Samples(Dtype);

const N: usize = 8;
const V: usize = 512;
const D: usize = 64;
/// Brings the gradient to the size of y.
const SHRINK: f32 = 128.0;

impl Job for Samples {
    type Output = Result<Vec<Sample>, String>;

    fn run<B: TrackedBackend>(self, device: B::Device) -> Self::Output {
        let able = |dtype: &Dtype| B::supports_dtype(&device, (*dtype).into());
        if !able(&self.0) {
            let others: Vec<_> = Dtype::all().filter(able).map(Dtype::as_str).collect();
            return Err(format!("it cannot compute in {}, only in {}", self.0, others.join(" and ")));
        }
        let tensor = |rows: usize, seed: usize| {
            let values: Vec<f32> = (0..rows * D).map(|i| pattern(i + seed)).collect();
            Tensor::<B, 2>::from_data(TensorData::new(values, [rows, D]), (&device, DType::from(self.0)))
        };
        let x = tensor(N, 1).require_grad();
        let w = tensor(V, 7919);
        let y = x.clone().matmul(w.clone().transpose()).cast(DType::F32);
        let gradients = (y.clone() * y.clone()).sum().div_scalar(SHRINK).backward();
        let dx = x.grad(&gradients).ok_or("no gradient came back")?;
        let read = |data: Result<TensorData, _>| match data {
            Ok(data) => Ok(data.convert::<f32>().to_vec::<f32>().unwrap_or_default()),
            Err(error) => Err(format!("reading a tensor failed: {error:?}")),
        };
        let stream = Clock { seed: 5, restart: 7, step: 11 }.stream(Purpose::PromptNoise);
        let noise = Plain::<B>::gumbel(stream, Some(0.999), 3..5, [N, V - 1], (&device, DType::F32));
        let whole = (0..N * (V - 1)).map(|i| (i * 97 % 251) as f32).collect();
        let whole = Tensor::<Plain<B>, 2>::from_data(TensorData::new(whole, [N, V - 1]), (&device, DType::from(self.0)));
        let first = Plain::<B>::argmax_rows(whole).into_iter().map(|at| at as f32).collect();
        let (rows, wide) = (w.clone().select(0, Tensor::from_ints([V - 1, 3, 3], &device)), w.cast(DType::F32).reshape([N, V / N * D]));
        let sample = |what, tolerance, values| Sample { what, tolerance, values };
        Ok(vec![
            sample("matrix product", TOLERANCE, read(y.try_into_data())?),
            sample("gradient", TOLERANCE, read(dx.try_into_data())?),
            sample("softmax", TOLERANCE, read(softmax(wide.clone(), 1).try_into_data())?),
            sample("maximum", TOLERANCE, read(wide.max_dim(1).try_into_data())?),
            sample("selection of rows", TOLERANCE, read(rows.try_into_data())?),
            sample("draw of noise", FINE, read(noise.try_into_data())?),
            sample("place of a maximum", 0.0, first),
        ])
    }
}

/// Numbers in [−1, 1) without a visible period.
fn pattern(i: usize) -> f32 {
    let hash = (i as u32).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(2_246_822_519);
    (hash >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// The parent's part.
fn test_with(mut program: Command, device: &DeviceInfo, dtype: Dtype, limit: Duration) -> Health {
    if std::env::var_os(ORDER).is_some() {
        return Health::Broken("a self-test started another: call `backend::on_start` first in `main`".into());
    }
    let started = program.env(ORDER, order(device, dtype)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let outcome = started.and_then(|child| wait(child, limit));
    let (status, said) = match outcome {
        Ok(outcome) => outcome,
        Err(error) => return Health::Broken(format!("the child process failed: {error}")),
    };
    let lines = || said.lines().filter_map(|line| line.strip_prefix(MARK));
    // Panics before a clear yes were caught, as those of kernels that were only tried.
    let deviation = lines().find_map(|line| line.strip_prefix(SOUND)?.parse().ok());
    match (status, deviation, lines().next()) {
        (None, ..) => Health::Broken(format!("no answer within {} s", limit.as_secs())),
        (Some(status), Some(deviation), _) if status.success() => Health::Sound(deviation),
        (Some(_), None, Some(reason)) => Health::Broken(printable(reason)),
        (Some(status), ..) => Health::Broken(format!("the child process ended with {status}")),
    }
}

/// Exit status, `None` if it had to be killed, and what the child wrote to stderr.
fn wait(mut child: Child, limit: Duration) -> std::io::Result<(Option<ExitStatus>, String)> {
    let mut pipe = child.stderr.take().expect("stderr is piped");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the text early, which is all there is to know then.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok((status, reader.join().unwrap_or_default()))
}

/// Drivers write what they like: one line of visible characters is kept.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;
    use crate::noise::Stream;

    fn device(backend: BackendName) -> DeviceInfo {
        DeviceInfo::new(backend, DeviceKind::Software, 0, "test")
    }

    /// Runs `script` in place of the program.
    #[cfg(unix)]
    fn played(script: &str, limit: Duration) -> Health {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        test_with(shell, &device(BackendName::Cuda), Dtype::Bf16, limit)
    }

    #[cfg(unix)]
    #[test]
    fn only_a_clear_yes_is_sound() {
        let minute = Duration::from_secs(60);
        let broken = |script| match played(script, minute) {
            Health::Broken(reason) => reason,
            other => panic!("{script}: {other:?}"),
        };
        let order = r#"[ "$DLMI_SELF_TEST" = "cuda software 0 bf16" ] && echo "self-test: sound, deviation 2e-7" >&2"#;
        assert_eq!(played(order, minute), Health::Sound(2e-7));
        let tried = "echo 'self-test: a kernel does not fit' >&2; echo 'self-test: sound, deviation 2e-7' >&2";
        assert_eq!(played(tried, minute), Health::Sound(2e-7));
        assert!(broken("exit 0").contains("exit status: 0"));
        assert!(broken("echo 'self-test: sound, deviation 2e-7' >&2; exit 1").contains("exit status: 1"));
        assert!(broken("kill -SEGV $$").contains("signal: 11"));
        assert_eq!(
            broken("echo noise >&2; echo 'self-test: no \u{1b}[31mkernel' >&2; echo 'self-test: channel closed' >&2; exit 1"),
            "no [31mkernel"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_child_that_hangs_is_killed() {
        let health = played("exec sleep 600", Duration::from_millis(50));
        assert_eq!(health, Health::Broken("no answer within 0 s".into()));
    }

    #[test]
    fn a_missing_program_is_a_reason() {
        let health = test_with(Command::new("/nonexistent"), &device(BackendName::Cuda), Dtype::F32, LIMIT);
        assert!(matches!(health, Health::Broken(reason) if reason.contains("failed")));
    }

    #[test]
    fn orders_survive_the_way_to_the_child() {
        let sent = DeviceInfo { index: 3, ..DeviceInfo::new(BackendName::Flex, DeviceKind::Integrated, 0, "") };
        for dtype in Dtype::all() {
            assert_eq!(parse(&order(&sent, dtype)), Some((sent.clone(), dtype)));
        }
        for nonsense in ["", "flex", "flex cpu", "flex cpu 0", "flex cpu x f32", "flex cpu 0 f8", "auto cpu 0 f32", "metal cpu 0 f32"] {
            assert_eq!(parse(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_wrong_sample_is_named() {
        let deviation = |tolerance, got: &[f32]| deviation(&Sample { what: "softmax", tolerance, values: got.to_vec() }, &[1.0, 2.0]);
        assert!((deviation(TOLERANCE, &[1.0, 2.01]).unwrap() - 0.005).abs() < 1e-6);
        for (tolerance, got) in [(TOLERANCE, &[1.0, 2.1][..]), (TOLERANCE, &[1.0, f32::NAN]), (TOLERANCE, &[1.0]), (FINE, &[1.0, 2.01])] {
            assert!(deviation(tolerance, got).unwrap_err().starts_with("a softmax is wrong by "), "{got:?}");
        }
        assert_eq!(deviation(0.0, &[1.0, 2.0]), Ok(0.0));
    }

    #[test]
    fn the_samples_are_what_they_say() {
        let samples = Samples(Dtype::F32).run::<Autodiff<Flex>>(Default::default()).unwrap();
        let values = samples[..2].iter().flat_map(|sample| &sample.values).copied().collect::<Vec<f32>>();
        let at = |seed: usize, row: usize, column: usize| pattern(seed + row * D + column);
        for (row, column) in [(0, 0), (7, 511), (3, 200)] {
            let y: f32 = (0..D).map(|k| at(1, row, k) * at(7919, column, k)).sum();
            assert!((values[row * V + column] - y).abs() < 1e-4);
        }
        let dx: f32 = (0..V).map(|k| 2.0 * values[2 * V + k] * at(7919, k, 5)).sum();
        assert!((values[N * V + 2 * D + 5] - dx / SHRINK).abs() < 1e-4);
        let row: Vec<f32> = (0..V / N * D).map(|i| pattern(7919 + i)).collect();
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        assert!((f64::from(samples[2].values[9]) - f64::from(row[9]).exp() / sum).abs() < 1e-8);
        assert_eq!(samples[3].values[0], row.iter().copied().fold(f32::MIN, f32::max));
        assert_eq!(samples[4].values[D + 7], pattern(7919 + 3 * D + 7));
        let u = Stream::new(5, 7, 11, Purpose::PromptNoise, 4).uniform(6, 509) * 0.999;
        assert!((f64::from(samples[5].values[(N + 6) * (V - 1) + 509]) + (-f64::from(u).ln()).ln()).abs() < 1e-5);
        let place = |row: usize| (0..V - 1).find(|i| (row * (V - 1) + i) * 97 % 251 == 250).unwrap() as f32;
        assert_eq!(samples[6].values, (0..N).map(place).collect::<Vec<f32>>());
    }
}
