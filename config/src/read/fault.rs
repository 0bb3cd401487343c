//! `[fault]`: its keys, their defaults and ranges.

use crate::error::ConfigError;
use crate::fields::{Fields, MAX};
use crate::read::POSITIVE;
use crate::sections::{FaultSection, OnNotFinite, OnSpike, RunSection};

/// Reads the section of a run.
pub(super) fn read(mut fields: Fields<'_>, run: &RunSection) -> Result<FaultSection, ConfigError> {
    let usual = FaultSection::default();
    let min_ranks = fields.integer32("min_ranks", 1..=run.lanes, Some(usual.min_ranks))?;
    let section = FaultSection {
        min_ranks,
        max_ranks: fields
            .optional_integer("max_ranks", u64::from(min_ranks)..=u64::from(run.lanes))?
            .and_then(|ranks| u32::try_from(ranks).ok()),
        snapshot_every: fields.integer("snapshot_every", 0..=MAX, Some(usual.snapshot_every))?,
        max_restarts: fields.integer32("max_restarts", 0..=u32::MAX, Some(usual.max_restarts))?,
        patience_seconds: fields.number(
            "patience_seconds",
            Some(usual.patience_seconds),
            "a number of seconds above 0 and at most 86400",
            |x| x > 0.0 && x <= 86_400.0,
        )?,
        lease_seconds: fields.number(
            "lease_seconds",
            Some(usual.lease_seconds),
            "a number of seconds from 2 to 86400",
            |x| (2.0..=86_400.0).contains(&x),
        )?,
        on_not_finite: fields.word("on_not_finite", OnNotFinite::WORDS, Some(usual.on_not_finite))?,
        on_spike: fields.word("on_spike", OnSpike::WORDS, Some(usual.on_spike))?,
        spike_sigmas: fields.number("spike_sigmas", Some(usual.spike_sigmas), POSITIVE, |x| x > 0.0)?,
        max_skips: fields.integer32("max_skips", 0..=u32::MAX, Some(usual.max_skips))?,
        drift_every: fields.integer("drift_every", 0..=MAX, Some(usual.drift_every))?,
    };
    fields.done()?;
    Ok(section)
}
