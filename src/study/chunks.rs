//! A list cut into parts that take equally long.

/// Cuts `items` into `count` parts of nearly the same work: the largest first, each to the part that has least so far. Each part keeps the
/// order of the list. Fewer parts where there are fewer items; none is empty.
pub fn chunks(items: &[usize], work: impl Fn(usize) -> f64, count: usize) -> Vec<Vec<usize>> {
    let mut largest_first: Vec<(usize, f64)> = items.iter().map(|&item| work(item)).enumerate().collect();
    largest_first.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut parts = vec![(0.0_f64, Vec::new()); count.min(items.len())];
    for (place, work) in largest_first {
        let (sum, places) = parts.iter_mut().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is one");
        *sum += work;
        places.push(place);
    }
    let in_order = |mut places: Vec<usize>| {
        places.sort_unstable();
        places.into_iter().map(|place| items[place]).collect()
    };
    parts.into_iter().map(|(_, places)| in_order(places)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_take_equally_long_and_hold_every_item_once() {
        let items: Vec<usize> = (100..148).rev().collect();
        let work = |item: usize| if item.is_multiple_of(4) { 9.0 } else { 1.0 + (item % 3) as f64 };
        for count in [1, 5, 8] {
            let parts = chunks(&items, work, count);
            let sums: Vec<f64> = parts.iter().map(|part| part.iter().map(|&item| work(item)).sum()).collect();
            let (least, most) = (sums.iter().copied().fold(f64::MAX, f64::min), sums.iter().copied().fold(0.0, f64::max));
            assert!(parts.len() == count && most - least <= 3.0, "{sums:?}");
            assert!(parts.iter().all(|part| part.is_sorted_by(|a, b| a > b)));
            let mut all = parts.concat();
            all.sort_unstable();
            assert_eq!(all, (100..148).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_part_is_empty() {
        assert_eq!(chunks(&[7, 3], |_| 1.0, 5), [[7], [3]]);
        assert!(chunks(&[], |_| 1.0, 5).is_empty());
    }
}
