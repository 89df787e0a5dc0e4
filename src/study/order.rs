//! The order of a grid: any beginning of it is balanced over each axis.

/// Every pair of `0..n` and `0..m` once, so that in any beginning the values of either side come equally often, give or take one.
///
/// Both sides count up together; after each common multiple, where the pairs would repeat, the second one skips a step.
fn diagonal(n: usize, m: usize) -> impl Iterator<Item = (usize, usize)> {
    let round = n * m / gcd(n, m).max(1);
    (0..n * m).map(move |t| (t % n, (t + t / round) % m))
}

fn gcd(n: usize, m: usize) -> usize {
    if m == 0 { n } else { gcd(m, n % m) }
}

/// Every point of a grid with these sizes once. In any beginning the values of each axis come equally often, give or take one.
pub(super) fn balanced(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![Vec::new()], |points: Vec<Vec<usize>>, &size| {
        diagonal(points.len(), size).map(|(point, value)| [&points[point][..], &[value]].concat()).collect()
    })
}

/// As [`balanced`], with one axis more, of groups that have so many members each; every point is made once with each member: `(group,
/// member, rest of the point)`. A group that has fewer runs out earlier. The rest comes together in all its ways soonest.
pub(super) fn balanced_groups(members: &[usize], sizes: &[usize]) -> Vec<(usize, usize, Vec<usize>)> {
    let rounds = members.iter().max().copied().unwrap_or(0);
    let round = |member: usize| {
        let groups: Vec<usize> = (0..members.len()).filter(|&group| members[group] > member).collect();
        let points = balanced(&[sizes, &[groups.len()]].concat());
        points.into_iter().map(move |mut point| {
            let group = groups[point.pop().expect("the last axis is the groups'")];
            (group, member, point)
        })
    };
    (0..rounds).flat_map(round).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn evenly(values: impl Iterator<Item = usize>, size: usize) {
        let mut counts = vec![0_usize; size];
        for value in values {
            counts[value] += 1;
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
    }

    #[test]
    fn every_point_comes_once_and_every_beginning_is_balanced() {
        for sizes in [&[5, 3, 2][..], &[4, 4], &[5, 6, 2, 2], &[1], &[3, 1, 3], &[2, 4, 8], &[6, 4, 9]] {
            let points = balanced(sizes);
            assert_eq!(points.iter().collect::<HashSet<_>>().len(), sizes.iter().product::<usize>());
            for (axis, size) in sizes.iter().enumerate() {
                evenly(points.iter().map(|point| point[axis]), *size);
            }
        }
        assert!(balanced(&[3, 0]).is_empty());
    }

    #[test]
    fn groups_of_one_size_stay_balanced_and_others_run_out() {
        let even = balanced_groups(&[2, 2, 2], &[2, 3]);
        assert_eq!(even.iter().collect::<HashSet<_>>().len(), 36);
        evenly(even.iter().map(|(group, ..)| *group), 3);
        evenly(even.iter().map(|(.., rest)| rest[1]), 3);
        // No axis is confounded with another for long.
        let first: HashSet<_> = even[..6].iter().map(|(.., rest)| rest).collect();
        assert_eq!(first.len(), 6);
        let uneven = balanced_groups(&[1, 3], &[2]);
        assert_eq!(uneven.iter().collect::<HashSet<_>>().len(), 8);
        assert!(uneven[..4].iter().all(|(_, member, _)| *member == 0) && uneven[4..].iter().all(|(group, ..)| *group == 1));
    }
}
