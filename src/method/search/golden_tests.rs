//! The first steps of the searches from the literature against PyTorch, `tests/golden/rival_steps.py`: the same candidates, the same
//! losses, the same prompts. In f64, so that nothing but the computation itself is compared.

use burn::backend::{Autodiff, Flex};
use burn::tensor::DType;

use super::arca::ARCA;
use super::autoprompt::AUTOPROMPT;
use super::gcg::GCG;
use super::*;
use crate::noise::{Draws, Purpose};
use crate::objective::ObjectiveKind;
use crate::testing::{Golden, one_at_a_time, table_1_problem, tiny_subject};

type B = Autodiff<Flex>;

const SEED: u32 = 3;

/// All steps of `search` from where the fixture begins.
fn follows_pytorch(name: &str, search: Search) {
    let _guard = one_at_a_time();
    let golden = Golden::open("rival_steps.safetensors");
    let ids = |part: &str| golden.ids(&format!("{name}.{part}"));
    let (first, prompts, values) = (ids("first").remove(0), ids("prompt"), golden.doubles(&format!("{name}.value")));
    let (subject, problem) = (tiny_subject::<B>(DType::F64), table_1_problem(first.len(), ""));
    let clock = |step| Clock { seed: SEED, restart: 0, step };
    let mut method = SearchMethod::new(search);
    Method::<B>::start(&mut method, &subject, &problem, clock(0)).unwrap();
    if search.start == Start::Repeated {
        assert_eq!(method.at.current.free, first);
    } else {
        // The fixture knows nothing of readable words.
        let scores = subject.target_scores(&[&first], &problem, search.goal.objective()).remove(0);
        method.at.current = Scored { value: objective_value(search.goal.objective(), &scores.losses, &problem), free: first, scores };
    }
    for (step, (prompt, loss)) in prompts.iter().zip(values).enumerate() {
        let mut draws = Draws::new(clock(step as u32).stream(Purpose::SearchDraws));
        draws.uniform();
        let (batch, _) = method.batch(&subject, &problem, clock(step as u32), &mut draws);
        assert_eq!(batch, ids(&format!("{step}.candidates")), "{name}, step {step}");
        let losses = golden.doubles(&format!("{name}.{step}.losses"));
        for (scores, loss) in subject.target_scores(&batch, &problem, search.goal.objective()).iter().zip(losses) {
            let found = f64::from(objective_value(search.goal.objective(), &scores.losses, &problem));
            assert!((found - loss).abs() < 1e-4, "{name}, step {step}: {found} {loss}");
        }
        let progress = method.step(&subject, &problem, clock(step as u32)).unwrap();
        assert_eq!(&method.at.current.free, prompt, "{name}, step {step}");
        assert!((f64::from(progress.objective) - loss).abs() < 1e-4, "{name}, step {step}: {} {loss}", progress.objective);
    }
}

/// A search with batches of so many candidates.
fn of(search: Search, batch: usize) -> Search {
    Search { schedule: Schedule { batch, growth: None }, ..search }
}

#[test]
fn gcg_goes_where_pytorch_goes() {
    let gcg = Search { proposal: Proposal::Top { top: 12, n_replace: 1 }, ..of(GCG, 24) };
    follows_pytorch("gcg", gcg);
    follows_pytorch("gcg-2", Search { proposal: Proposal::Top { top: 12, n_replace: 2 }, ..gcg });
    follows_pytorch("gcg-mellowmax", Search { goal: Goal::of(ObjectiveKind::Mellowmax), ..gcg });
}

#[test]
fn arca_goes_where_pytorch_goes() {
    follows_pytorch("arca", of(ARCA, 6));
}

#[test]
fn autoprompt_goes_where_pytorch_goes() {
    follows_pytorch("autoprompt", of(AUTOPROMPT, 6));
}
