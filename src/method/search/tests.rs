//! The search on a tiny random model: what it keeps, that it finds what can be found, and that it does no work twice.

use burn::tensor::DType;

use super::arca::ARCA;
use super::autoprompt::AUTOPROMPT;
use super::gcg::GCG;
use super::random::RANDOM;
use super::snap::SNAP;
use super::*;
use crate::invert::judge::Judge;
use crate::invert::{Budget, Stopped, Trial};
use crate::method::search::memory::Known;
use crate::method::search::proposal::Tokens;
use crate::noise::{Draws, Purpose, Stream};
use crate::objective::ObjectiveKind;
use crate::problem::prompt::PromptOptions;
use crate::problem::{Context, Target};
use crate::setting::Written;
use crate::subject::Cost;
use crate::tensor::{host, norm};
use crate::testing::{each_tracked_cpu_backend, largest_difference, loaded, tiny, tiny_subject};

fn snap() -> Search {
    let growth = Some(Growth { patience: 5, batch_max: 16, restart_when_stalled: false });
    let schedule = Schedule { batch: 8, growth };
    Search { start: Start::Readable, proposal: Proposal::Gradient { top: 64, momentum: 0.6 }, schedule, rough: false, ..SNAP }
}

/// Swaps are drawn from all there are from the first.
const WHOLE_RANKING: Proposal = Proposal::Gradient { top: 1 << 20, momentum: 0.6 };

fn subject<B: TrackedBackend>() -> Subject<B> {
    tiny_subject(DType::F32)
}

/// A target that some prompt of two tokens leads to.
fn problem<B: TrackedBackend>(subject: &Subject<B>, m: usize) -> Problem {
    let source = subject.tokenizer().encode("he to");
    let ids = subject.free(subject.embed(&[source]), m).remove(0);
    let target = Target::new(subject.tokenizer().decode(&ids), ids);
    let options = PromptOptions { tokens: 4, prefix: "a ".into(), ..PromptOptions::default() };
    Problem::new(options, target, subject.tokenizer(), subject.vocab_size()).unwrap()
}

fn judge() -> Judge<'static> {
    Judge::new(loaded(&mut tiny(), DType::F32))
}

fn clock(seed: u32, step: u32) -> Clock {
    Clock { seed, restart: 0, step }
}

/// A search that was started.
fn started<B: TrackedBackend>(search: Search, seed: u32, subject: &Subject<B>, problem: &Problem) -> SearchMethod {
    let mut method = SearchMethod::new(search);
    Method::<B>::start(&mut method, subject, problem, clock(seed, 0)).unwrap();
    method
}

/// Some neighbours of a search's prompt.
fn neighbours(method: &mut SearchMethod, seed: u32, count: usize, problem: &Problem) -> Vec<Vec<u32>> {
    let mut draws = Draws::new(Stream::new(seed, 0, 0, Purpose::SearchDraws, 0));
    method.at.pace.batch = count;
    method.propose(&Tokens::Any(problem.prompt.ids()), problem, &mut draws)
}

/// After every step: the prompt can be typed, keeps the ban, and its margins are those of the model.
fn what_is_held_can_be_typed<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 3);
    let rivals = [GCG, ARCA, AUTOPROMPT].map(|rival| Search { schedule: Schedule { batch: 8, growth: None }, ..rival });
    for search in [snap(), Search { start: Start::Paraphrase(16), ..snap() }].into_iter().chain(rivals) {
        let mut method = started(search, 3, &subject, &problem);
        for step in 0..12 {
            let progress = method.step(&subject, &problem, clock(3, step)).unwrap();
            let prompt = Method::<B>::hard_prompt(&method, &subject, &problem);
            assert!(problem.round_trips(&prompt.free), "{:?}", prompt.free);
            assert!(problem.is_valid(&prompt.free, &problem.typed_ids(&prompt.free)));
            let scores = subject.target_scores(&[&prompt.free], &problem, search.goal.objective()).remove(0);
            let difference = largest_difference(&scores.margins, prompt.margins.as_ref().unwrap());
            assert!(difference < 1e-4, "{difference}");
            assert!((progress.objective - objective_value(search.goal.objective(), &scores.losses, &problem)).abs() < 1e-3);
        }
    }
}

/// The margins of a prompt that may lead to the target are exact, those of others nearly so.
fn what_nearly_leads_is_scored_in_full<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 1);
    let mut method = started(Search { rough: true, ..snap() }, 3, &subject, &problem);
    let mut near = 0;
    for step in 0..30 {
        method.step(&subject, &problem, clock(3, step)).unwrap();
        let current = &method.at.current;
        let margins = subject.all_margins(&[&current.free], &problem).remove(0);
        let difference = largest_difference(&current.scores.margins, &margins);
        assert!(difference < if current.nearly_leads(&problem) { 1e-4 } else { 0.1 }, "{difference}");
        near += u32::from(current.nearly_leads(&problem));
        // Not only what is taken.
        let mut other = started(method.search, 3, &subject, &problem);
        other.at.clone_from(&method.at);
        let batch = neighbours(&mut other, step, 10, &problem);
        other.best_below(f32::MAX, &batch, &[1], &subject, &problem);
        let rough = other.memory.entries().into_iter().filter_map(|(_, known)| if let Known::Rough(it) = known { Some(it) } else { None });
        assert!(rough.into_iter().all(|candidate| !candidate.nearly_leads(&problem)));
    }
    assert!((1..30).contains(&near), "{near} of 30 prompts nearly lead to the target");
}

/// A swap that leads to the target, however narrowly: neither a set that is worth more nor a stall in the same step, which goes back to the best
/// prompt, takes its place.
fn a_solution_is_not_given_up<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 5);
    let stalling = Some(Growth { patience: 0, batch_max: 8, restart_when_stalled: false });
    let mut method = started(Search { schedule: Schedule { batch: 8, growth: stalling }, ..snap() }, 4, &subject, &problem);
    let (objective, current) = (snap().goal.objective(), method.at.current.clone());
    (method.at.current.value, method.at.best.value) = (1e6, 0.1);
    let mut draws = Draws::new(clock(4, 1).stream(Purpose::SearchDraws));
    draws.uniform();
    let (batch, _) = method.batch(&subject, &problem, clock(4, 1), &mut draws);
    for (number, free) in batch.iter().enumerate() {
        let margins = vec![if number == 3 { 0.05 } else { -0.05 }; 5];
        let scores = TargetScores { margins, losses: vec![1.0; 5], nll: 0.0 };
        method.memory.insert(free.clone(), Known::whole(Scored { free: free.clone(), scores, value: 1e5 }, Products::Full));
        // As if it had been measured: sets of them promise much.
        let margins = current.scores.margins.iter().map(|margin| margin + 1.0).collect();
        let scores = TargetScores { margins, ..current.scores.clone() };
        method.effects.measure(objective, &current, &Scored { free: free.clone(), scores, value: 0.0 });
    }
    assert!(!method.sets(1e5, batch.len(), &problem).is_empty());
    method.step(&subject, &problem, clock(4, 1)).unwrap();
    assert_eq!((&method.at.current.free, &method.at.best.free), (&batch[3], &batch[3]));
}

/// Scores behind a shared trunk, and dropped half-way, are those of whole prompts.
fn sharing_and_dropping_change_nothing<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 5);
    let mut method = started(snap(), 4, &subject, &problem);
    let batch = neighbours(&mut method, 4, 12, &problem);
    let whole: Vec<Vec<u32>> = batch.iter().map(|free| problem.first().search_ids(free)).collect();
    let expected = subject.margins(&whole, &problem.first().target.ids);
    let before = subject.cost();
    let objective = snap().goal.objective();
    let found = subject.candidates(&method.at.current.free, &batch, &problem, objective).score(5);
    for (found, expected) in found.iter().zip(&expected) {
        assert!(largest_difference(&found.margins, expected) < 1e-4);
    }
    assert!(subject.cost().forward_tokens - before.forward_tokens < before.forward_tokens);

    let hinges: Vec<f32> = expected.iter().map(|margins| Objective::hinge(0.3, margins)).collect();
    let lowest = hinges.iter().copied().fold(f32::INFINITY, f32::min);
    let best = method.best_below(lowest + 0.01, &batch, &[2, 1, 2], &subject, &problem).unwrap();
    assert!((best.value - lowest).abs() < 1e-3);
    assert_eq!(best.free, batch[hinges.iter().position(|hinge| *hinge == lowest).unwrap()]);
    method.memory.clear();
    assert!(method.best_below(lowest - 0.01, &batch, &[3, 2], &subject, &problem).is_none());
}

/// Whatever the bound, the objective and the number of swaps: the best candidate of those scored to the end is never dropped before.
fn dropping_early_never_drops_the_best<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 5);
    for goal in [Goal::HINGE, Goal::CROSS_ENTROPY, Goal::LOG_PROB_DIFFERENCE] {
        let (mut rows, mut all) = (0, 0);
        let swaps = [1, 2, 3, 4].into_iter().flat_map(|swaps| [(swaps, None), (swaps, Some(0.8))]);
        for (seed, (n_replace, fluency)) in (1..).zip(swaps) {
            let search = Search { goal, proposal: Proposal::Top { top: 1, n_replace }, fluency, ..snap() };
            let mut method = started(search, seed, &subject, &problem);
            (0..seed).for_each(|_| method.at.missed.note([false, true, false, false, true].into_iter()));
            let batch = neighbours(&mut method, seed, 10, &problem);
            let whole = method.best_below(f32::MAX, &batch, &[5], &subject, &problem).unwrap();
            for above in [1e-3, 0.5] {
                method.memory.clear();
                let before = subject.cost();
                let found = method.best_below(whole.value + above, &batch, &[1, 1, 1, 1, 1], &subject, &problem).unwrap();
                assert_eq!(found.free, whole.free, "{goal:?} {n_replace} {fluency:?}");
                assert!((found.value - whole.value).abs() < 1e-4);
                rows += subject.cost().head_rows - before.head_rows;
                // Fluency takes another row for each free token, the first one's being shared.
                all += fluency.map_or(0, |_| 3 * batch.len() as u64 + 1) + 5 * batch.len() as u64;
            }
        }
        assert!(rows < all, "{goal:?}: nothing was dropped");
    }
}

/// It begins at the best of the given prompts, exactly scored, or at one that leads to the target although another is worth more.
fn the_best_of_given_prompts_is_the_start<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 3);
    let mut method = started(snap(), 6, &subject, &problem);
    let prompts = neighbours(&mut method, 6, 9, &problem);
    let values: Vec<f32> = subject
        .target_scores(&prompts, &problem, snap().goal.objective())
        .iter()
        .map(|scores| objective_value(snap().goal.objective(), &scores.losses, &problem))
        .collect();
    let lowest = values.iter().copied().fold(f32::INFINITY, f32::min);
    method.begin_at(&prompts, 0, &subject, &problem);
    let start = &method.at.current;
    assert!(
        (start.value - lowest).abs() < 1e-4 && (values[prompts.iter().position(|free| *free == start.free).unwrap()] - lowest).abs() < 1e-4
    );
    assert_eq!((&method.at.best, method.memory.entries().len()), (start, 0));
}

fn finds_and_confirms<B: TrackedBackend>() {
    let (subject, judge) = (subject::<B>(), judge());
    let problem = problem(&subject, 1);
    for goal in [Goal::HINGE, Goal::CROSS_ENTROPY] {
        let mut method = SearchMethod::new(Search { goal, ..snap() });
        let budget =
            Budget { steps: Some(300), positions: None, seconds: None, restarts: 0, eval_every: 10, early_stop: true, shortest: false };
        let trial = Trial { subject: &subject, judge: &judge, problem: &problem, budget, seed: 1 };
        let outcome = trial.run(&mut method, None, &mut ()).unwrap();
        assert_eq!(outcome.stopped, Stopped::Exact);
        assert!(outcome.verdict.exact && outcome.best.valid);
        assert_eq!(outcome.verdict.confirmations[0].completion, problem.first().target.ids);
        assert!(outcome.run.cost.forward_tokens > 0 && outcome.run.cost.backward_tokens > 0);
    }
}

/// After every step: what is shown is the objective and the weighted fluency of the prompt at hand.
fn fluency_is_minimised_too<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 3);
    let rivals = [GCG, ARCA, AUTOPROMPT, RANDOM].map(|rival| Search { schedule: Schedule { batch: 8, growth: None }, ..rival });
    for search in [snap(), Search { start: Start::Paraphrase(16), ..snap() }].into_iter().chain(rivals) {
        let search = Search { fluency: Some(0.8), ..search };
        let mut method = started(search, 3, &subject, &problem);
        let first = method.at.current.scores.nll;
        for step in 0..10 {
            let progress = method.step(&subject, &problem, clock(3, step)).unwrap();
            let free = [&method.at.current.free];
            let scores = subject.target_scores(&free, &problem, search.goal.objective()).remove(0);
            let expected = objective_value(search.goal.objective(), &scores.losses, &problem) + 0.8 * subject.nll(&free, &problem)[0];
            assert!((progress.objective - expected).abs() < 1e-3, "{} {expected}", progress.objective);
        }
        assert!(first > 0.0 && method.at.best.value <= method.plain_value(&method.at.current, &problem) + 1e-6);
    }
}

/// The last free token stands before none, so what fluency promises of its swaps is all that they change in it, whatever the objective's
/// own gradient says.
fn what_fluency_promises_of_the_last_token_comes_true<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 3);
    let free = started(snap(), 3, &subject, &problem).at.current.free;
    let row = |fluency: Option<f64>| {
        let slope = Search { fluency, ..snap() }.slope(&free, None, &subject, &problem).at(free.len() - 1);
        host(slope.predicted_change(&free[free.len() - 1..], &subject))
    };
    let (with, without) = (row(Some(2.0)), row(None));
    assert_eq!(row(Some(0.0)), without);
    let own = subject.nll(&[&free], &problem)[0];
    for token in [5u32, 60, 200] {
        let swapped = [&free[..free.len() - 1], &[token]].concat();
        let (promised, change) = (with[token as usize] - without[token as usize], subject.nll(&[swapped], &problem)[0] - own);
        assert!((promised - 2.0 * change).abs() < 1e-3, "{promised} {change}");
    }
}

/// Where it is told to, a stalled search goes on from another random prompt, and is not called stalled.
fn a_stalled_search_restarts<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 3);
    let growth = Some(Growth { patience: 2, batch_max: 2, restart_when_stalled: true });
    let mut method = started(Search { schedule: Schedule { batch: 2, growth }, ..snap() }, 2, &subject, &problem);
    let first = method.at.current.free.clone();
    let restarted = (0..200).find(|&step| {
        let progress = method.step(&subject, &problem, clock(2, step)).unwrap();
        assert!(!progress.stalled);
        method.at.restarts == 1
    });
    assert!(restarted.is_some());
    let again = random_prompt(&problem, clock(2, 0), 1).unwrap();
    assert_ne!(first, again);
    let changed = again.iter().zip(&method.at.current.free).filter(|(a, b)| a != b).count();
    assert!(changed <= 1, "one step from the new prompt");
    assert!(method.emphasis(&problem).iter().all(|&emphasis| emphasis <= 1.1 + 1e-6), "what was missed before the start is forgotten");
    assert!(problem.round_trips(&again));
}

/// The `count` allowed tokens nearest to one, from the embeddings themselves, nearest first.
fn nearest<B: TrackedBackend>(of: u32, count: usize, subject: &Subject<B>, problem: &Problem) -> Vec<u32> {
    let ids: Vec<u32> = (0..subject.vocab_size() as u32).collect();
    let embeddings = crate::tensor::host(subject.embed(&[&ids]));
    let rows: Vec<&[f32]> = embeddings.chunks_exact(embeddings.len() / ids.len()).collect();
    let dot = |a: u32, b: u32| rows[a as usize].iter().zip(rows[b as usize]).map(|(a, b)| a * b).sum::<f32>();
    let cosine = |token: u32| dot(of, token) / dot(token, token).sqrt();
    let mut allowed: Vec<u32> = ids.into_iter().filter(|&id| problem.prompt.allowed()[id as usize]).collect();
    allowed.sort_by(|&a, &b| cosine(b).total_cmp(&cosine(a)));
    allowed.truncate(count);
    allowed
}

/// Three of four prompts that a search looks at first paraphrase a target, each in turn, stretched or over and over; all can be typed.
fn paraphrases_are_of_tokens_near_the_targets<B: TrackedBackend>() {
    let subject = subject::<B>();
    let of = |tokens: usize, lengths: &[usize]| {
        let target = |&m| (Context::default(), problem(&subject, m).examples.remove(0).target);
        let options = PromptOptions { tokens, ..PromptOptions::default() };
        Problem::with_examples(options, lengths.iter().map(target).collect(), subject.tokenizer(), subject.vocab_size()).unwrap()
    };
    for problem in [of(4, &[4]), of(7, &[3]), of(3, &[5]), of(4, &[2, 5])] {
        let n = problem.prompt.tokens();
        let others = |count, number| Start::Paraphrase(count).others(&subject, &problem, clock(6, 0), number);
        let all = others(65, 0);
        assert_eq!((all.len(), &all[..16]), (64, &others(17, 0)[..]), "more of them are the same and others");
        assert_ne!(all[..16], others(17, 1), "another start has others");
        assert!(all.iter().all(|free| free.len() == n && problem.admits(free)));
        for (example, target) in problem.examples.iter().map(|example| &example.target.ids).enumerate() {
            let near: Vec<Vec<u32>> = target.iter().map(|&id| nearest(id, 4, &subject, &problem)).collect();
            let m = target.len();
            let stretched = |i: usize| i * m / n;
            let cycled = |i: usize| (0..m).find(|token| (n - i) % m == (m - token) % m).unwrap();
            let shares = |token: &dyn Fn(usize) -> usize| -> Vec<usize> {
                let like = |free: &Vec<u32>| (0..n).filter(|&i| near[token(i)].contains(&free[i])).count();
                all.iter().map(like).collect()
            };
            let (stretched, cycled) = (shares(&stretched), shares(&cycled));
            let paraphrases: Vec<usize> = (0..64).filter(|place| place % 4 != 3).collect();
            let own: Vec<usize> = paraphrases
                .into_iter()
                .enumerate()
                .filter(|(number, _)| number % problem.examples.len() == example)
                .map(|(_, place)| place)
                .collect();
            let in_layout = own.iter().enumerate().map(|(number, &place)| if number % 2 == 0 { stretched[place] } else { cycled[place] });
            let share = in_layout.sum::<usize>() as f32 / (own.len() * n) as f32;
            assert!(share > 0.6, "{share} of their tokens are near the target's, what was mended apart");
            let share = (3..64).step_by(4).map(|place| stretched[place]).sum::<usize>() as f32 / (16 * n) as f32;
            assert!(share < 0.2, "{share} of random words");
        }
    }
}

/// The first step goes to the best of the prompts that are looked at first, where one is better, and counts what they cost.
fn it_begins_at_the_best_paraphrase<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 4);
    let objective = snap().goal.objective();
    let worth = |all: &[Vec<u32>]| -> Vec<f32> {
        subject.target_scores(all, &problem, objective).iter().map(|scores| objective_value(objective, &scores.losses, &problem)).collect()
    };
    let search = Search { start: Start::Paraphrase(64), ..snap() };
    let mut method = started(search, 6, &subject, &problem);
    let first = method.at.current.clone();
    assert_eq!(first.free, random_prompt(&problem, clock(6, 0), 0).unwrap());
    let others = search.start.others(&subject, &problem, clock(6, 0), 0);
    let best = worth(&others).into_iter().fold(f32::INFINITY, f32::min);
    assert!(best < first.value);
    let saved = Method::<B>::state(&method);
    let before = subject.cost();
    let progress = method.step(&subject, &problem, clock(6, 0)).unwrap();
    assert!((progress.objective - best).abs() < 1e-4 && others.contains(&method.at.current.free), "{progress:?} {best}");
    assert!(subject.cost().forward_tokens > before.forward_tokens + 64 && subject.cost().backward_tokens == before.backward_tokens);

    // Left and begun again, it is the same step; the next one is like any other.
    let mut again = SearchMethod::new(search);
    again.restore(saved, &subject, &problem).unwrap();
    again.step(&subject, &problem, clock(6, 0)).unwrap();
    assert_eq!((&again.at.current, again.at.opening), (&method.at.current, false));
    assert!(method.step(&subject, &problem, clock(6, 1)).unwrap().gradient_norm.is_some());
    let alone = started(Search { start: Start::Paraphrase(1), ..search }, 6, &subject, &problem);
    assert_eq!((alone.at.opening, &alone.at.current), (false, &first));
}

/// Random swaps never make the prompt worse.
fn the_control_only_improves<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 3);
    let search = Search { schedule: Schedule { batch: 8, growth: None }, ..RANDOM };
    let mut method = started(search, 9, &subject, &problem);
    let mut last = f32::INFINITY;
    for step in 0..10 {
        let progress = method.step(&subject, &problem, clock(9, step)).unwrap();
        assert!(progress.objective <= last && progress.gradient_norm.is_none());
        last = progress.objective;
    }
}

/// gcg begins with the letter that may stand there, whatever the seed; where none may, with words. With a buffer it begins at the best of
/// as many and never gets worse; without, it does.
fn gcg_begins_and_goes_on_as_its_buffer_says<B: TrackedBackend>() {
    let subject = subject::<B>();
    let tokenizer = subject.tokenizer();
    let aimed_at = |target: &str, prefix: &str| {
        let target = Target::from_text(target, tokenizer).unwrap();
        let options = PromptOptions { tokens: 4, prefix: prefix.into(), ..PromptOptions::default() };
        Problem::new(options, target, tokenizer, subject.vocab_size()).unwrap()
    };
    let first = |buffer_size, seed, problem: &Problem| {
        let gcg = Search { acceptance: Acceptance::Buffer { buffer_size }, ..GCG };
        started(gcg, seed, &subject, problem).at.current
    };
    let free = |target: &str, prefix: &str| [1, 2].map(|seed| first(0, seed, &aimed_at(target, prefix)).free);
    let four = |text: &str| [(); 2].map(|()| tokenizer.encode(text)[..4].to_vec());
    // The space before the free part is a token of its own.
    assert_eq!((free("he", ""), free("he", "so ")), (four("x x x"), four("x x x")));
    assert_eq!(free("ox", ""), four("! ! !"));
    let [words, others] = free("ox!", "");
    assert!(words != others && !four("x x x").contains(&words) && !four("! ! !").contains(&words));

    let problem = problem(&subject, 3);
    let others = (1..8).map(|number| random_prompt(&problem, clock(4, 0), number).unwrap());
    let starts: Vec<Vec<u32>> = std::iter::once(first(0, 4, &problem).free).chain(others).collect();
    let scores = subject.target_scores(&starts, &problem, GCG.goal.objective());
    let best = scores.iter().map(|scores| objective_value(GCG.goal.objective(), &scores.losses, &problem)).fold(f32::INFINITY, f32::min);
    assert_eq!(first(1, 4, &problem).free, starts[0]);
    assert!((first(8, 4, &problem).value - best).abs() < 1e-4);
    for buffer_size in [0, 2] {
        let gcg = Search { acceptance: Acceptance::Buffer { buffer_size }, schedule: Schedule { batch: 6, growth: None }, ..GCG };
        let mut method = started(gcg, 5, &subject, &problem);
        let mut values = vec![method.at.current.value];
        values.extend((0..12).map(|step| method.step(&subject, &problem, clock(5, step)).unwrap().objective));
        assert_eq!(values.windows(2).any(|pair| pair[1] > pair[0]), buffer_size == 0, "{values:?}");
    }
}

/// What the model was asked between two states of the account.
fn spent(before: Cost, after: Cost) -> (u64, u64, u64) {
    let Cost { forward_tokens, backward_tokens, head_rows } = after;
    (forward_tokens - before.forward_tokens, backward_tokens - before.backward_tokens, head_rows - before.head_rows)
}

/// The same draws again at an unchanged prompt ask the model for nothing, also after a resume; other draws ask for what is new to them.
fn nothing_is_scored_twice_at_an_unchanged_prompt<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 5);
    for (acceptance, cut) in [(Acceptance::Better, false), (SNAP.acceptance, false), (Acceptance::Better, true)] {
        let mut method = started(Search { acceptance, proposal: WHOLE_RANKING, ..snap() }, 5, &subject, &problem);
        // So good that nothing is taken: with its loss at the end of the target, or at its beginning, where candidates are dropped.
        method.at.current.value = -1e6;
        if !cut {
            method.at.current.scores.losses = vec![f32::MIN, 0.0, 0.0, 0.0, 0.0];
        }
        method.at.best = method.at.current.clone();
        let step = |method: &mut SearchMethod, step| {
            let before = subject.cost();
            let progress = method.step(&subject, &problem, clock(5, step)).unwrap();
            (progress, spent(before, subject.cost()))
        };
        let (first, cost) = step(&mut method, 0);
        assert!(cost.0 > 0 && cost.1 > 0 && cost.2 > 0, "{cost:?}");
        assert_eq!(method.memory.entries().len(), 8);
        // With the same share of an average that does not change, the ranking is the same, but for rounding.
        let (again, cost) = step(&mut method, 0);
        assert_eq!((again, cost), (first, (0, 0, 0)));
        let mut resumed = SearchMethod::new(method.search);
        let state = Method::<B>::state(&method);
        Method::<B>::restore(&mut resumed, state, &subject, &problem).unwrap();
        assert_eq!(step(&mut resumed, 0), (first, (0, 0, 0)));
        let (_, (forward, backward, _)) = step(&mut resumed, 1);
        assert!(forward > 0 && backward == 0);
        assert!((9..=16).contains(&resumed.memory.entries().len()));
    }
}

/// Where the best swaps of all positions are known and none of them is taken, others are tried.
fn no_prompt_is_a_dead_end<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 5);
    let proposal = Proposal::Gradient { top: 1, momentum: 0.6 };
    let schedule = Schedule { batch: 8, growth: None };
    let search = Search { proposal, acceptance: Acceptance::Better, sets: None, schedule, ..snap() };
    let mut method = started(search, 5, &subject, &problem);
    method.at.current.value = -1e6;
    let free = method.at.current.free.clone();
    for step in 0..100 {
        method.step(&subject, &problem, clock(5, step)).unwrap();
    }
    assert_eq!(method.at.current.free, free);
    let swaps = method.memory.entries().len();
    assert!(swaps > 10 * free.len(), "{swaps}");
}

/// It goes the same way as a search that forgets everything after each step, for less.
fn memory_changes_the_cost_alone<B: TrackedBackend>() {
    let subject = subject::<B>();
    let problem = problem(&subject, 3);
    // Which sets are tried goes by what is remembered.
    let search = Search { proposal: Proposal::Gradient { top: 6, momentum: 0.6 }, sets: None, ..snap() };
    let run = |forgets: bool| {
        let mut method = started(search, 7, &subject, &problem);
        let before = subject.cost();
        let prompts: Vec<Vec<u32>> = (0..60)
            .map(|step| {
                if forgets {
                    method.memory.clear();
                    method.ranking.prompt_changed();
                }
                method.step(&subject, &problem, clock(7, step)).unwrap();
                method.at.current.free.clone()
            })
            .collect();
        (prompts, spent(before, subject.cost()))
    };
    let ((remembered, cost), (forgotten, more)) = (run(false), run(true));
    assert_eq!(remembered, forgotten);
    assert!(cost.0 < more.0 && cost.1 < more.1 && cost.2 < more.2, "{cost:?} {more:?}");
    let stayed = remembered.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
    assert!(more.1 - cost.1 >= (stayed - 1) * more.1 / 60, "a gradient for each prompt, not for each step");
}

/// A search over several examples minimises their mean, and stops where all of them are solved.
fn several_examples_share_a_prompt<B: TrackedBackend>() {
    let subject = subject::<B>();
    let target = |m| problem(&subject, m).examples.remove(0).target;
    let examples = vec![
        (Context { before: "so ".into(), between: String::new() }, target(2)),
        (Context { before: String::new(), between: "it".into() }, target(3)),
    ];
    let options = PromptOptions { tokens: 4, ..PromptOptions::default() };
    let both = Problem::with_examples(options, examples, subject.tokenizer(), subject.vocab_size()).unwrap();
    for goal in [Goal::HINGE, Goal::CROSS_ENTROPY] {
        let mut method = started(Search { goal, ..snap() }, 3, &subject, &both);
        let objective = goal.objective();
        let mut best = method.at.current.value;
        for step in 0..8 {
            let emphasis = method.emphasis(&both);
            let gradient = subject.gradient(&method.at.current.free, &both, objective, Some(&emphasis), Products::Full);
            let progress = method.step(&subject, &both, clock(3, step)).unwrap();
            assert!((progress.gradient_norm.unwrap() - norm(gradient)).abs() < 1e-4, "{goal:?}: {progress:?}");
            let (current, mut sum) = (&method.at.current, 0.0);
            assert!(both.round_trips(&current.free));
            assert_eq!(current.scores.margins.len(), 5);
            for example in &both.examples {
                let one = Problem { examples: vec![example.clone()], ..both.clone() };
                sum += objective_value(objective, &subject.target_scores(&[&current.free], &one, objective)[0].losses, &one);
            }
            assert!((progress.objective - sum / 2.0).abs() < 1e-4, "{goal:?}: {progress:?} {sum}");
            best = best.min(progress.objective);
            assert!((method.at.best.value - best).abs() < 1e-5, "{goal:?}: {} {best}", method.at.best.value);
            // What was missed counts for more.
            let emphasised: f32 = current.scores.losses.iter().zip(method.weights(&both)).map(|(loss, weight)| loss * weight).sum();
            assert!((current.value - emphasised).abs() < 1e-4, "{goal:?}: {} {emphasised}", current.value);
        }
        assert!(method.at.current.value > method.plain_value(&method.at.current, &both), "something was missed");
        let mut resumed = SearchMethod::new(method.search);
        Method::<B>::restore(&mut resumed, Method::<B>::state(&method), &subject, &both).unwrap();
        resumed.step(&subject, &both, clock(3, 8)).unwrap();
        method.step(&subject, &both, clock(3, 8)).unwrap();
        assert_eq!((&resumed.at.current, &resumed.at.missed), (&method.at.current, &method.at.missed));
        assert!(method.parts(&both).iter().sum::<usize>() == 5 && method.parts(&both).len() >= 2);
    }
}

/// The gradient is that of the weighted sum: each target position's own, times its emphasis.
fn emphasis_weighs_the_gradients_of_the_positions<B: TrackedBackend>() {
    let subject = subject::<B>();
    let [first, second] = [2, 3].map(|m| problem(&subject, m).examples.remove(0).target);
    let examples = vec![(Context::default(), first), (Context { before: "so ".into(), between: String::new() }, second)];
    let options = PromptOptions { tokens: 4, ..PromptOptions::default() };
    let problem = Problem::with_examples(options, examples, subject.tokenizer(), subject.vocab_size()).unwrap();
    let free = random_prompt(&problem, clock(3, 0), 0).unwrap();
    let objective = snap().goal.objective();
    let gradient = |emphasis: &[f32]| host(subject.gradient(&free, &problem, objective, Some(emphasis), Products::Full));
    let emphasis = [1.0, 2.5, 0.5, 3.0, 0.0];
    let mut expected = vec![0.0; gradient(&emphasis).len()];
    for (position, &weight) in emphasis.iter().enumerate() {
        let mut alone = [0.0; 5];
        alone[position] = 1.0;
        expected.iter_mut().zip(gradient(&alone)).for_each(|(sum, part)| *sum += weight * part);
    }
    let largest = expected.iter().fold(0.0f32, |largest, part| largest.max(part.abs()));
    assert!(largest > 0.0 && largest_difference(&gradient(&emphasis), &expected) < 1e-4 * largest);
    let plain = host(subject.gradient(&free, &problem, objective, None, Products::Full));
    assert!(largest_difference(&gradient(&[1.0; 5]), &plain) < 1e-5 * largest);
}

each_tracked_cpu_backend!(
    emphasis_weighs_the_gradients_of_the_positions,
    what_nearly_leads_is_scored_in_full,
    a_solution_is_not_given_up,
    what_is_held_can_be_typed,
    sharing_and_dropping_change_nothing,
    dropping_early_never_drops_the_best,
    the_best_of_given_prompts_is_the_start,
    finds_and_confirms,
    fluency_is_minimised_too,
    what_fluency_promises_of_the_last_token_comes_true,
    a_stalled_search_restarts,
    paraphrases_are_of_tokens_near_the_targets,
    it_begins_at_the_best_paraphrase,
    the_control_only_improves,
    gcg_begins_and_goes_on_as_its_buffer_says,
    nothing_is_scored_twice_at_an_unchanged_prompt,
    memory_changes_the_cost_alone,
    no_prompt_is_a_dead_end,
    several_examples_share_a_prompt,
);

#[test]
fn a_search_has_the_settings_that_it_needs() {
    let names = |search: &Search| KEYS.iter().filter(|key| key.applies(search)).map(|key| key.name).collect::<Vec<_>>();
    let of_gcg = ["start", "n_replace", "buffer_size"];
    let all: Vec<&str> = KEYS.iter().map(|key| key.name).filter(|name| !of_gcg.contains(name)).collect();
    assert_eq!(names(&SNAP), all);
    assert!(all.contains(&"emphasis"));
    assert_eq!(names(&RANDOM), ["objective", "margin", "fluency", "rough", "batch"]);
    assert_eq!(names(&GCG), ["objective", "fluency", "start", "top", "n_replace", "buffer_size", "rough", "batch"]);
    let of_arca = vec!["objective", "fluency", "rough", "batch"];
    assert_eq!((names(&ARCA), names(&AUTOPROMPT)), (of_arca.clone(), of_arca));
    let by_cross_entropy = Search { goal: Goal::CROSS_ENTROPY, ..SNAP };
    assert_eq!(names(&by_cross_entropy), all.iter().copied().filter(|name| *name != "margin").collect::<Vec<_>>());
    let samples = ["7", "0.5", "true", "false", "cross-entropy", "readable"];
    for key in KEYS {
        let search = if key.applies(&SNAP) { SNAP } else { GCG };
        let changes = |text: &&&str| {
            let mut changed = search;
            matches!(key.set(&mut changed, &Written::untyped(**text)), Some(Ok(()))) && key.get(&changed) != key.get(&search)
        };
        assert!(samples.iter().any(|text| changes(&text)), "nothing changes {}", key.name);
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    assert_eq!((SNAP.check(), RANDOM.check()), (Ok(()), Ok(())));
    let goal = Goal::of(ObjectiveKind::Mellowmax);
    let search = |emphasis, share| Search { goal, emphasis: Some(emphasis), sets: Some(Sets { share, ..SNAP.sets.unwrap() }), ..SNAP };
    assert_eq!((search(0.0, 0.0).check(), Search { goal, ..GCG }.check()), (Ok(()), Ok(())));
    for refused in [search(2.0, 0.0), search(0.0, 1.0)] {
        assert_eq!(
            refused.check().unwrap_err(),
            "`emphasis` and `sets` add up target positions, which `mellowmax` does not: set both to 0"
        );
    }
    let search = Search { schedule: Schedule { batch: 97, ..SNAP.schedule }, ..SNAP };
    assert_eq!(search.check().unwrap_err(), "`batch` is 97 but `batch_max` is 96: it must be at least `batch`");
}
