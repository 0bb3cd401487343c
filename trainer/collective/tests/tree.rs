//! The lane tree keeps its definition, for every number of lanes, every deal to ranks, and lanes without work.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::ops::Range;

use lockstep_collective::{Expression, LaneTree, TreeError};
use proptest::prelude::*;

/// The definition, as text: node(a, b) = (node(a, a+p)+node(a+p, b)), p the largest power of two strictly below b − a,
/// lanes without work left out.
fn naive(a: u32, b: u32, working: &[bool]) -> Option<String> {
    if b - a == 1 {
        return working[a as usize].then(|| a.to_string());
    }
    let mut p = 1;
    while 2 * p < b - a {
        p *= 2;
    }
    match (naive(a, a + p, working), naive(a + p, b, working)) {
        (Some(left), Some(right)) => Some(format!("({left}+{right})")),
        (left, right) => left.or(right),
    }
}

/// Every node of the definition.
fn nodes(a: u32, b: u32) -> Vec<Range<u32>> {
    let mut found = vec![a..b];
    if b - a > 1 {
        let mut p = 1;
        while 2 * p < b - a {
            p *= 2;
        }
        found.extend(nodes(a, a + p));
        found.extend(nodes(a + p, b));
    }
    found
}

/// An expression as text, where each part is written as its own sum.
fn write(expression: &Expression, parts: &[String]) -> String {
    match expression {
        Expression::Part(index) => parts[*index].clone(),
        Expression::Sum(left, right) => format!("({}+{})", write(left, parts), write(right, parts)),
    }
}

/// Lanes with and without work, and borders that deal them to ranks (some may get none).
fn deals() -> impl Strategy<Value = (Vec<bool>, Vec<Range<u32>>)> {
    (
        prop::collection::vec(prop::bool::weighted(0.7), 1..40),
        prop::collection::vec(0.0..1.0f64, 0..8),
    )
        .prop_map(|(working, cuts)| {
            let lanes = working.len() as f64;
            let mut borders: Vec<u32> = cuts.iter().map(|cut| (cut * (lanes + 1.0)) as u32).collect();
            borders.extend([0, working.len() as u32]);
            borders.sort();
            (working, borders.windows(2).map(|pair| pair[0]..pair[1]).collect())
        })
}

proptest! {
    #[test]
    fn every_deal_of_lanes_to_ranks_adds_in_the_one_order_of_the_definition((working, deal) in deals()) {
        let tree = LaneTree::new(&working);
        let parts: Vec<Range<u32>> = deal.iter().flat_map(|lanes| tree.maximal_subtrees(lanes.clone())).collect();
        let whole = naive(0, working.len() as u32, &working);
        match tree.combine(&parts) {
            Ok(expression) => {
                let sums: Vec<String> =
                    parts.iter().map(|part| naive(part.start, part.end, &working).unwrap()).collect();
                prop_assert_eq!(Some(write(&expression, &sums)), whole);
            }
            Err(error) => {
                prop_assert_eq!(error, TreeError::NoWork);
                prop_assert_eq!(whole, None);
            }
        }
    }

    #[test]
    fn maximal_subtrees_are_the_largest_nodes_inside_that_have_work((working, deal) in deals()) {
        let tree = LaneTree::new(&working);
        let all = nodes(0, working.len() as u32);
        for lanes in deal {
            let inside = |node: &Range<u32>| lanes.start <= node.start && node.end <= lanes.end;
            let mut expected: Vec<Range<u32>> = all
                .iter()
                .filter(|node| inside(node) && naive(node.start, node.end, &working).is_some())
                .filter(|node| {
                    let inside_another =
                        |other: &&Range<u32>| inside(other) && other.start <= node.start && node.end <= other.end;
                    all.iter().filter(inside_another).count() == 1
                })
                .cloned()
                .collect();
            expected.sort_by_key(|node| node.start);
            prop_assert_eq!(tree.maximal_subtrees(lanes.clone()), expected);
            prop_assert!(tree.maximal_subtrees(lanes.clone()).len() <= LaneTree::most_subtrees(lanes.len() as u32));
        }
    }
}

#[test]
fn the_bound_on_subtrees_holds_everywhere_and_is_met_by_the_worst_pieces() {
    let mut most = vec![0; 65];
    for lanes in 1..=130 {
        let tree = LaneTree::full(lanes);
        for start in 0..lanes {
            for end in start + 1..=lanes.min(start + 64) {
                let found = tree.maximal_subtrees(start..end).len();
                let length = (end - start) as usize;
                assert!(
                    found <= LaneTree::most_subtrees(end - start),
                    "{start}..{end} of {lanes}: {found}"
                );
                most[length] = most[length].max(found);
            }
        }
    }
    for (length, subtrees) in [
        (1, 1),
        (2, 2),
        (4, 3),
        (6, 4),
        (10, 5),
        (14, 6),
        (22, 7),
        (30, 8),
        (62, 10),
    ] {
        assert_eq!(most[length], subtrees);
        assert_eq!(LaneTree::most_subtrees(length as u32), subtrees);
    }
    assert_eq!(LaneTree::most_subtrees(0), 0);
}

#[test]
fn parts_that_do_not_make_the_sum_are_refused_by_lane() {
    let tree = LaneTree::new(&[true, true, false, true]);
    assert_eq!(tree.combine(&[0..2]), Err(TreeError::Missing { lane: 3 }));
    assert_eq!(
        tree.combine(&[0..2, 2..4, 0..1]),
        Err(TreeError::NotNeeded { start: 0, end: 1 })
    );
    assert_eq!(tree.combine(&[0..1, 1..3, 3..4]), Err(TreeError::Missing { lane: 1 }));
    assert_eq!(LaneTree::new(&[false, false]).combine(&[]), Err(TreeError::NoWork));
    assert_eq!(LaneTree::new(&[]).combine(&[]), Err(TreeError::NoWork));
    assert!(LaneTree::new(&[]).maximal_subtrees(0..3).is_empty());
}
