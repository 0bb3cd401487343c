//! How what an owner receives is cut into messages: a pure function of the request, so that both sides of a pair derive the
//! same messages in the same order, and none has to say what it is.

use std::ops::Range;

/// Elements that travel in one message for each partial sum, in one piece of the buffer or in several small ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Neighbouring in the message, not in the buffer; none is empty.
    pub(crate) pieces: Vec<Range<usize>>,
    /// Of all pieces together.
    pub(crate) elements: usize,
}

/// The messages of what `owner` owns, of at most `most` elements each. Small ranges share messages; a long one has messages
/// of its own, so that it can be sent from where it lies.
pub(crate) fn chunks_of(owners: &[(Range<usize>, u32)], owner: u32, most: usize) -> Vec<Chunk> {
    let small = most / 8;
    let (mut chunks, mut shared) = (Vec::new(), Chunk::default());
    for range in joined(owners, owner) {
        if range.len() > small {
            chunks.extend(cut(range, most).map(|piece| Chunk {
                elements: piece.len(),
                pieces: vec![piece],
            }));
            continue;
        }
        if shared.elements + range.len() > most {
            chunks.push(std::mem::take(&mut shared));
        }
        shared.elements += range.len();
        shared.pieces.push(range);
    }
    if shared.elements > 0 {
        chunks.push(shared);
    }
    chunks
}

/// The ranges of one owner, neighbours joined, none empty.
pub(crate) fn joined(owners: &[(Range<usize>, u32)], owner: u32) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (range, _) in owners.iter().filter(|(range, by)| *by == owner && !range.is_empty()) {
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range.clone()),
        }
    }
    ranges
}

/// A range in pieces of at most `most`.
pub(crate) fn cut(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(most).map(move |start| start..end.min(start + most))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn every_owned_element_travels_once_in_messages_that_fit() {
        let seed: u64 = rand::rng().random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..200 {
            let mut owners = Vec::new();
            let mut start = 0;
            for _ in 0..random.random_range(0..30) {
                start += random.random_range(0..2) * random.random_range(0..50);
                let end = start + random.random_range(0..2) * random.random_range(0..400);
                owners.push((start..end, random.random_range(0..3)));
                start = end;
            }
            let most = random.random_range(8..200);
            for owner in 0..3 {
                let chunks = chunks_of(&owners, owner, most);
                let mut travelled = Vec::new();
                for chunk in &chunks {
                    assert!((1..=most).contains(&chunk.elements));
                    assert_eq!(chunk.elements, chunk.pieces.iter().map(Range::len).sum::<usize>());
                    chunk.pieces.iter().cloned().for_each(|piece| travelled.extend(piece));
                }
                travelled.sort_unstable();
                let owned: Vec<usize> = owners
                    .iter()
                    .filter(|(_, by)| *by == owner)
                    .flat_map(|(range, _)| range.clone())
                    .collect();
                assert_eq!(travelled, owned);
            }
        }
    }

    #[test]
    fn small_ranges_share_a_message_and_long_ones_have_their_own() {
        let owners = [(0..10, 0), (10..20, 1), (20..25, 0), (30..330, 0), (330..400, 0)];
        let chunks = chunks_of(&owners, 0, 160);
        let pieces: Vec<_> = chunks.into_iter().map(|chunk| chunk.pieces).collect();
        assert_eq!(
            pieces,
            [vec![30..190], vec![190..350], vec![350..400], vec![0..10, 20..25]]
        );
    }
}
