//! `[batch.adaptive]`.

use crate::error::ConfigError;
use crate::fields::Fields;
use crate::sections::{AdaptiveBy, AdaptiveSection, BatchSchedule, Reduction, RunSection};

const KEY: &str = "adaptive";

/// The policy of a batch whose schedule is known; none where there is no `[batch.adaptive]`.
pub(super) fn read(
    fields: &mut Fields<'_>,
    run: &RunSection,
    (micro_batch, schedule): (u32, &BatchSchedule),
) -> Result<Option<AdaptiveSection>, ConfigError> {
    let Some(value) = fields.peek(KEY).cloned() else {
        return Ok(None);
    };
    let refuse = |fields: &Fields<'_>, expected: &str, advice: &str| {
        Err(fields.refuse_with(KEY, &value, expected.to_owned(), advice.to_owned()))
    };
    if run.reduction == Reduction::Fast || run.lanes < 2 {
        return refuse(
            fields,
            "absent here: the noise is measured between lanes whose sums are kept apart",
            "take run.reduction = \"invariant\" and at least 2 run.lanes, or take batch.adaptive out",
        );
    }
    let BatchSchedule::Constant { size } = schedule else {
        return refuse(
            fields,
            "absent where batch.schedule changes the batch",
            "give batch.schedule the size to begin with, as one number, or take batch.adaptive out",
        );
    };
    if *size <= u64::from(micro_batch) {
        return refuse(
            fields,
            "absent where the batch is one micro-batch: the noise is measured between lanes, and one lane has all the work",
            "lower batch.micro_batch, or begin with a larger batch.schedule",
        );
    }
    let mut inner = fields.section(KEY)?;
    let by = inner.word("by", &[("noise", true), ("goodput", false)], Some(true))?;
    let section = AdaptiveSection {
        every: inner.integer("every", 1..=1_000_000, Some(100))?,
        most: inner.integer("most", *size..=16_777_216, None)?,
        growth: inner.number("growth", Some(2.0), "a number above 1 and at most 16", |x| {
            x > 1.0 && x <= 16.0
        })?,
        patience: inner.integer32("patience", 1..=1000, Some(2))?,
        shrinks: inner.boolean("shrinks", false)?,
        smooth: inner.integer("smooth", 1..=1_000_000, Some(100))?,
        by: match by {
            true => AdaptiveBy::Noise {
                target: inner.number("target", Some(1.0), "a number above 0", |x| x > 0.0)?,
            },
            false => AdaptiveBy::Goodput,
        },
    };
    inner.done()?;
    Ok(Some(section))
}
