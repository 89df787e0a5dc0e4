//! Prompts that differ from the current one by one token: the inner loop of every hard search.

use std::ops::Range;

use super::{Plain, Subject, Swap, repeat};
use crate::model::{Cache, Llama};
use crate::ops::{Kernels, Parallel, TrackedBackend};
use crate::tensor::{host, ids_tensor};

/// Rows of a group of swaps, about: each group computes its trunk by itself.
const SWAP_ROWS: usize = 256;

/// A prompt's neighbours by one swap each, scored along the target a part at a time. What they share is computed once in each group
/// of them; the groups are computed side by side.
pub struct Neighbours<'a, B: TrackedBackend> {
    subject: &'a Subject<B>,
    prompt: &'a [u32],
    target: &'a [u32],
    groups: Vec<Group<Plain<B>>>,
    /// Target tokens scored so far.
    scored: usize,
}

/// Some neighbours and their keys and values.
struct Group<B: Kernels> {
    model: Llama<B>,
    /// (number among all neighbours still kept, what it swaps).
    swaps: Vec<(usize, Swap)>,
    /// Positions of the prompt that were known before.
    known: usize,
    cache: Cache<B>,
}

impl<B: TrackedBackend> Neighbours<'_, B> {
    /// How far each of the next `count` target tokens is ahead of the best other one, `[swaps][count]`, the target's own tokens fed.
    pub fn margins(&mut self, count: usize) -> Vec<Vec<f32>> {
        let (prompt, target, scored) = (self.prompt, self.target, self.scored);
        let jobs = self.groups.iter_mut().map(|group| move || group.margins(prompt, target, scored..scored + count));
        let (mut all, mut pushed) = (Vec::new(), 0);
        for (rows, margins) in Plain::<B>::side_by_side(jobs.collect(), usize::MAX) {
            pushed += rows;
            all.extend(margins);
        }
        self.subject.charge(pushed, 0, all.len() * count);
        self.scored += count;
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, margins)| margins).collect()
    }

    /// Keeps the neighbours for which `keep` is true.
    pub fn retain(&mut self, keep: &[bool]) {
        let kept_before: Vec<usize> = keep.iter().scan(0, |kept, &keep| Some(std::mem::replace(kept, *kept + usize::from(keep)))).collect();
        for group in &mut self.groups {
            let mask: Vec<bool> = group.swaps.iter().map(|(number, _)| keep[*number]).collect();
            group.cache.retain(&mask);
            group.swaps.retain(|(number, _)| keep[*number]);
            group.swaps.iter_mut().for_each(|(number, _)| *number = kept_before[*number]);
        }
        self.groups.retain(|group| !group.swaps.is_empty());
    }
}

impl<B: Kernels> Group<B> {
    /// Rows pushed through the layers, and the margins at the target tokens `next` of each neighbour, by number.
    fn margins(&mut self, prompt: &[u32], target: &[u32], next: Range<usize>) -> (usize, Vec<(usize, Vec<f32>)>) {
        let fed = &target[next.start.saturating_sub(1)..next.end - 1];
        let mut ids = Vec::new();
        if next.start == 0 {
            let trunk = self.swaps.iter().map(|(_, swap)| swap.position).max().unwrap_or(0);
            ids.extend(&prompt[self.known..trunk]);
        }
        for (_, swap) in &self.swaps {
            if next.start == 0 {
                ids.push(swap.token);
                ids.extend(&prompt[swap.position + 1..]);
            }
            ids.extend(fed);
        }
        self.cache.grow(prompt.len() + next.end - 1);
        let device = self.model.device();
        let rows = self.model.embed(ids_tensor(&[&ids], &device)).reshape([ids.len(), self.model.config().hidden_size]);
        let hidden = self.model.hidden_cached(rows, &mut self.cache, next.len());
        let targets = repeat::<B>(&target[next.clone()], self.swaps.len(), &device);
        let margins = host(B::margins(hidden, self.model.head(), targets));
        let numbers = self.swaps.iter().map(|(number, _)| *number);
        (ids.len(), numbers.zip(margins.chunks_exact(next.len()).map(<[f32]>::to_vec)).collect())
    }
}

impl<B: TrackedBackend> Subject<B> {
    /// `prompt` with one token swapped at a time, behind its first `fixed` tokens, which no swap touches; to be scored along `target`.
    pub fn neighbours<'a>(&'a self, prompt: &'a [u32], fixed: usize, swaps: &[Swap], target: &'a [u32]) -> Neighbours<'a, B> {
        let prefix = self.prefix(&prompt[..fixed]);
        // Dealt by position, so that the groups have about the same number of rows.
        let mut order: Vec<(usize, Swap)> = swaps.iter().copied().enumerate().collect();
        order.sort_by_key(|(_, swap)| swap.position);
        let rows: usize = swaps.iter().map(|swap| prompt.len() - swap.position + target.len() / 2).sum();
        let count = Plain::<B>::groups(rows, SWAP_ROWS, self.max_rows).min(swaps.len());
        let groups = (0..count).map(|first| {
            let swaps: Vec<(usize, Swap)> = order.iter().copied().skip(first).step_by(count).collect();
            let starts: Vec<usize> = swaps.iter().map(|(_, swap)| swap.position).collect();
            Group { model: self.plain.clone(), swaps, known: fixed, cache: prefix.fork(&starts) }
        });
        Neighbours { subject: self, prompt, target, groups: groups.collect(), scored: 0 }
    }
}
