//! Copies of long ranges, past the caches.
//!
//! An ordinary store first reads the line that it overwrites. Where the copied bytes are evicted before anybody reads them,
//! that is a third of the traffic for nothing, and on a machine whose ranks all copy at once memory is what they wait for. So
//! [`copy`] writes long ranges by stores that do not read, and short ones, which the next reader finds in its cache, as
//! `copy_from_slice` does.

/// From here on a copy goes past the caches: a range of this length fills the second cache of any processor of today, and its
/// share of the last one.
const LONG: usize = 4 << 20;

/// Copies all of `source`, which is as long as `destination`.
#[track_caller]
pub(crate) fn copy(destination: &mut [u8], source: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if source.len() >= LONG {
        return past_the_caches(destination, source);
    }
    destination.copy_from_slice(source);
}

/// How far ahead of the copy the source is asked for.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 512;

#[cfg(target_arch = "x86_64")]
#[track_caller]
fn past_the_caches(destination: &mut [u8], source: &[u8]) {
    use std::arch::x86_64::{__m128i, _MM_HINT_NTA, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128};
    /// Bytes of a line; one is written by four stores in a row, so that it leaves as a whole.
    const LINE: usize = 64;

    assert_eq!(
        destination.len(),
        source.len(),
        "a copy needs as much room as there is to copy"
    );
    let head = destination.as_ptr().align_offset(LINE).min(destination.len());
    let (first, rest) = destination.split_at_mut(head);
    let (first_source, rest_source) = source.split_at(head);
    first.copy_from_slice(first_source);
    let (lines, last) = rest.as_chunks_mut::<LINE>();
    let (line_sources, last_source) = rest_source.as_chunks::<LINE>();
    for (line, source) in lines.iter_mut().zip(line_sources) {
        let from = source.as_ptr().cast::<__m128i>();
        let into = line.as_mut_ptr().cast::<__m128i>();
        // SAFETY: SSE2 is part of x86-64. Source and line are 64 bytes each, and the line begins at a multiple of 64. A
        // prefetch reads nothing, whatever its address is.
        unsafe {
            _mm_prefetch::<_MM_HINT_NTA>(source.as_ptr().wrapping_add(AHEAD).cast());
            let quarters = [0, 1, 2, 3].map(|quarter| _mm_loadu_si128(from.add(quarter)));
            for (quarter, value) in quarters.into_iter().enumerate() {
                _mm_stream_si128(into.add(quarter), value);
            }
        }
    }
    last.copy_from_slice(last_source);
    // SAFETY: SSE2 is part of x86-64. These stores are ordered by nothing else, and a peer reads them after our next word.
    unsafe { _mm_sfence() };
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_and_no_other_is_touched_whatever_the_borders() {
        let source: Vec<u8> = (0..LONG + 300).map(|at| (at * 7 + at / 251) as u8).collect();
        for (start, from, length) in [
            (0, 0, LONG),
            (1, 0, LONG + 1),
            (63, 64, LONG + 63),
            (17, 5, LONG + 200),
            (3, 9, LONG - 1),
            (5, 5, 0),
        ] {
            let mut destination = vec![0xa5u8; LONG + 400];
            copy(&mut destination[start..start + length], &source[from..from + length]);
            assert!(destination[..start].iter().all(|byte| *byte == 0xa5));
            assert!(destination[start..start + length] == source[from..from + length]);
            assert!(destination[start + length..].iter().all(|byte| *byte == 0xa5));
        }
    }

    #[test]
    #[should_panic(expected = "as much room as there is to copy")]
    fn a_copy_that_does_not_fit_panics() {
        copy(&mut vec![0; LONG], &vec![0; LONG + 1]);
    }
}
