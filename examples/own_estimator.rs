//! An estimator of one's own in the loop of DLMI: Gumbel-softmax, and no position's gradient is longer than 1.
//! `cargo run --release --no-default-features --example own_estimator`

use burn::tensor::{Tensor, backend::AutodiffBackend};
use dlmi::estimator::{Estimate, Estimator, GumbelSoftmax, Noise, Relaxation};
use dlmi::method::relaxed::{RelaxedMethod, dlmi::DLMI};
use dlmi::method::{Build, Method};
use dlmi::ops::TrackedBackend;
use dlmi::subject::Footprint;
use dlmi::{Inversion, Model, Result};

type Plain<B> = <B as AutodiffBackend>::InnerBackend;

struct Clipped(GumbelSoftmax);

impl<B: TrackedBackend> Estimator<B> for Clipped {
    fn estimate(&mut self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>> {
        let Estimate { loss, dz, dphi } = self.0.estimate(at, noise);
        let length = dz.clone().powi_scalar(2).sum_dim(1).sqrt();
        Estimate { loss, dz: dz / length.clamp_min(1.0), dphi }
    }

    fn soft_prompts(&self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Option<Tensor<Plain<B>, 2>> {
        self.0.soft_prompts(at, noise)
    }
}

struct ClippedDlmi;

impl Build for ClippedDlmi {
    fn build<B: TrackedBackend>(&self) -> Box<dyn Method<B>> {
        Box::new(RelaxedMethod::with(DLMI, Box::new(Clipped(GumbelSoftmax { largest_uniform: None }))))
    }

    fn footprint(&self) -> Footprint {
        DLMI.footprint()
    }
}

fn invert(target: &str, steps: u64) -> Result<Inversion> {
    let mut model = Model::open("bard")?;
    let mut options = model.options()?;
    (options.prompt_tokens, options.steps, options.max_seconds) = (10, Some(steps), None);
    model.task(target, &options)?.with_method("clipped-dlmi", ClippedDlmi).run(&mut ())
}

fn main() -> Result<()> {
    let found = invert("I'll not be a king.", 64)?;
    println!("{:?} writes {:?}", found.prompt_text, found.completion_text);
    Ok(())
}

#[test]
fn an_estimator_of_ones_own_moves_the_prompt() {
    let found = invert("I'll not be a king.", 3).unwrap();
    assert_eq!((found.steps, found.circumstances.method.as_str()), (3, "clipped-dlmi"));
    assert!(found.lcs.scores.is_some_and(|scores| scores.relaxed_forced.is_some()) && found.cost.backward_tokens > 0);
}
