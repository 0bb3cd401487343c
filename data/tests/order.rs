//! Every sample exactly once, on any world: the seeded order, the lanes, the micro-batches.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use lockstep_data::{Order, lane_micro_batches, micro_batch_samples};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #[test]
    fn an_epoch_is_a_bijection(seed: u64, samples in prop_oneof![1..300u64, Just(1), Just(2), Just(4), Just(5), Just(257), Just(4093)], epoch in 0..1000u64) {
        let order = Order::new(seed, samples);
        let seen: HashSet<u64> = (epoch * samples..(epoch + 1) * samples).map(|index| order.sample(index)).collect();
        prop_assert_eq!(seen.len() as u64, samples);
        prop_assert!(seen.iter().all(|window| *window < samples));
    }

    #[test]
    fn a_large_epoch_stays_in_range_and_does_not_repeat_itself(seed: u64, samples in (1u64 << 33)..(1 << 62), first: u32) {
        let order = Order::new(seed, samples);
        let seen: HashSet<u64> = (u64::from(first)..u64::from(first) + 200).map(|index| order.sample(index)).collect();
        prop_assert_eq!(seen.len(), 200);
        prop_assert!(seen.iter().all(|window| *window < samples));
    }

    #[test]
    fn another_epoch_and_another_seed_have_another_order(seed: u64, samples in 100..2000u64, epoch in 0..100u64) {
        let windows = |seed, epoch| -> Vec<u64> {
            let order = Order::new(seed, samples);
            (epoch * samples..(epoch + 1) * samples).map(|index| order.sample(index)).collect()
        };
        prop_assert_ne!(windows(seed, epoch), windows(seed, epoch + 1));
        prop_assert_ne!(windows(seed, epoch), windows(seed ^ 1, epoch));
    }

    #[test]
    fn lanes_share_out_the_micro_batches_of_a_step_in_order(lanes in 1..200u32, micro_batches in 0..1000u32) {
        let mut next = 0;
        for lane in 0..lanes {
            let share = lane_micro_batches(lane, lanes, micro_batches);
            prop_assert_eq!(share.start, next);
            prop_assert!(share.len() as u32 <= micro_batches.div_ceil(lanes));
            next = share.end;
        }
        prop_assert_eq!(next, micro_batches);
    }

    /// Goes through a whole epoch with batches that change from step to step, dealt to ranks that change too, as a
    /// trainer does: lanes to ranks, micro-batches to lanes, samples to micro-batches.
    #[test]
    fn every_sample_of_an_epoch_is_trained_exactly_once_on_any_world(
        seed: u64,
        samples in 1..800u64,
        lanes in 1..9u32,
        micro_batch in 1..7u32,
        steps in vec((1..12u32, 1..9u32), 1..8),
    ) {
        let order = Order::new(seed, samples);
        let mut count = vec![0u32; samples as usize];
        let mut cursor = 0;
        for (micro_batches, ranks) in steps.iter().cycle() {
            if cursor >= samples {
                break;
            }
            let ranks = (*ranks).min(lanes);
            for rank in 0..ranks {
                for lane in rank * lanes / ranks..(rank + 1) * lanes / ranks {
                    for index in lane_micro_batches(lane, lanes, *micro_batches) {
                        for sample in micro_batch_samples(cursor, micro_batch, index) {
                            // A step may reach into the next epoch: those samples are counted there.
                            if sample < samples {
                                count[order.sample(sample) as usize] += 1;
                            }
                        }
                    }
                }
            }
            cursor += u64::from(*micro_batches) * u64::from(micro_batch);
        }
        prop_assert!(count.iter().all(|times| *times == 1), "{:?}", count);
    }

    #[test]
    fn the_samples_of_a_step_are_a_function_of_seed_and_cursor_alone(seed: u64, samples in 1..10_000u64, cursor: u32, lanes in 1..6u32) {
        let step = |order: &Order| -> Vec<u64> {
            (0..lanes)
                .flat_map(|lane| lane_micro_batches(lane, lanes, 8))
                .flat_map(|index| micro_batch_samples(cursor.into(), 4, index))
                .map(|sample| order.sample(sample))
                .collect()
        };
        let used = Order::new(seed, samples);
        for index in 0..50 {
            used.sample(index);
        }
        let one_lane: Vec<u64> = (0..32).map(|sample| used.sample(u64::from(cursor) + sample)).collect();
        prop_assert_eq!(step(&used), step(&Order::new(seed, samples)));
        prop_assert_eq!(step(&used), one_lane);
    }
}

#[test]
fn an_epoch_is_shuffled_well() {
    // Neighbours in the order are far apart in the text: a mean distance near a third of the range.
    let samples = 10_000;
    let order = Order::new(7, samples);
    let windows: Vec<u64> = (0..samples).map(|index| order.sample(index)).collect();
    let distance: u64 = windows.windows(2).map(|two| two[0].abs_diff(two[1])).sum();
    let mean = distance as f64 / (samples - 1) as f64;
    assert!((mean / samples as f64 - 1.0 / 3.0).abs() < 0.02, "{mean}");
    let fixed = windows
        .iter()
        .enumerate()
        .filter(|(index, window)| *index as u64 == **window)
        .count();
    assert!(fixed < 10, "{fixed} windows stay in their places");
}

#[test]
fn what_a_seed_means_does_not_change() {
    let order = Order::new(42, 1000);
    let first: Vec<u64> = (0..8).map(|index| order.sample(index)).collect();
    let second_epoch: Vec<u64> = (1000..1004).map(|index| order.sample(index)).collect();
    assert_eq!(first, GOLDEN_FIRST);
    assert_eq!(second_epoch, GOLDEN_SECOND);
}

const GOLDEN_FIRST: [u64; 8] = [816, 875, 729, 45, 805, 433, 432, 189];
const GOLDEN_SECOND: [u64; 4] = [562, 353, 453, 101];
