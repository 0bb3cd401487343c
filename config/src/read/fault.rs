//! `[fault]`: its keys, their defaults and ranges.

use toml::Value;

use crate::error::ConfigError;
use crate::fields::{Fields, MAX};
use crate::read::POSITIVE;
use crate::sections::{CollectiveBackend, CollectiveSection, FaultSection, OnNotFinite, OnSpike, RunSection};

/// More rewinds than that are no policy.
const MOST_REWINDS: u32 = 1000;

/// Reads the section of a run.
pub(super) fn read(
    mut fields: Fields<'_>,
    run: &RunSection,
    collective: &CollectiveSection,
) -> Result<FaultSection, ConfigError> {
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
        max_rewinds: fields.integer32("max_rewinds", 0..=MOST_REWINDS, Some(usual.max_rewinds))?,
        rewind_steps: fields.integer("rewind_steps", 0..=MAX, Some(usual.rewind_steps))?,
        rewind_skip: fields.boolean("rewind_skip", usual.rewind_skip)?,
        rewind_factor: fields.number(
            "rewind_factor",
            Some(usual.rewind_factor),
            "a number above 0 and at most 1",
            |x| x > 0.0 && x <= 1.0,
        )?,
        drift_every: fields.integer("drift_every", 0..=MAX, Some(usual.drift_every))?,
    };
    can_rewind(&fields, &section, collective)?;
    fields.done()?;
    Ok(section)
}

/// Refuses rewinds that cannot be made, or that would lead to the same step again.
fn can_rewind(fields: &Fields<'_>, section: &FaultSection, collective: &CollectiveSection) -> Result<(), ConfigError> {
    if !section.may_rewind() {
        return Ok(());
    }
    if collective.backend == CollectiveBackend::Mpi {
        let key = match section.on_spike {
            OnSpike::Rewind => "on_spike",
            _ => "on_not_finite",
        };
        return Err(fields.refuse_with(
            key,
            &Value::String("rewind".to_owned()),
            "\"stop\" or \"skip\" where collective.backend is \"mpi\", since a world of MPI cannot be formed anew",
            "choose one of them, or another backend",
        ));
    }
    if !section.rewind_skip && section.rewind_factor == 1.0 {
        return Err(fields.refuse_with(
            "rewind_factor",
            &Value::Float(section.rewind_factor),
            "below 1 where fault.rewind_skip is false: by the same plan the same bits would come to the same step again",
            "lower fault.rewind_factor or set fault.rewind_skip = true",
        ));
    }
    Ok(())
}
