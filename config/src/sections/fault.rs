//! `[fault]`: what happens when ranks come and go, when a step's loss cannot be used, and when memory changes.

/// `[fault]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultSection {
    /// With fewer ranks the run waits.
    pub min_ranks: u32,
    /// More trainers than that wait; default: as many as there are lanes.
    pub max_ranks: Option<u32>,
    /// Steps between two snapshots in the memory of owners and their buddies; 0: none.
    pub snapshot_every: u64,
    /// Trainers that `lockstep run` starts again, in the whole run.
    pub max_restarts: u32,
    /// How long a rank may take to leave the collectives after it was told to, before it is fenced, in seconds.
    pub patience_seconds: f64,
    /// A rank that says nothing for so long, or whose device thread hangs, is given up, in seconds.
    pub lease_seconds: f64,
    /// What becomes of a step whose loss or gradient is not finite.
    pub on_not_finite: OnNotFinite,
    /// What becomes of a step whose loss lies far above those before it.
    pub on_spike: OnSpike,
    /// How far above their smoothed mean, in smoothed deviations, makes a spike.
    pub spike_sigmas: f64,
    /// So many steps in a row may be skipped; the next one that would be stops the run.
    pub max_skips: u32,
    /// So many times the run may go back; the next time that it would have to ends it.
    pub max_rewinds: u32,
    /// A rewind goes back so many steps before the last good one, or to the beginning.
    pub rewind_steps: u64,
    /// Whether the samples of the steps that are left behind, those of the bad one among them, are not trained again.
    pub rewind_skip: bool,
    /// After a rewind every learning rate is multiplied by this.
    pub rewind_factor: f64,
    /// Steps between two comparisons of what memory holds with what was written there; 0: none.
    pub drift_every: u64,
}

impl FaultSection {
    /// Whether a step may make the run go back.
    pub fn may_rewind(&self) -> bool {
        self.on_not_finite == OnNotFinite::Rewind || self.on_spike == OnSpike::Rewind
    }
}

impl Default for FaultSection {
    fn default() -> FaultSection {
        FaultSection {
            min_ranks: 1,
            max_ranks: None,
            snapshot_every: 20,
            max_restarts: 10,
            patience_seconds: 60.0,
            lease_seconds: 15.0,
            on_not_finite: OnNotFinite::Stop,
            on_spike: OnSpike::Off,
            spike_sigmas: 6.0,
            max_skips: 10,
            max_rewinds: 3,
            rewind_steps: 20,
            rewind_skip: true,
            rewind_factor: 1.0,
            drift_every: 1,
        }
    }
}

/// What becomes of a step whose loss or gradient is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnNotFinite {
    /// The run ends.
    Stop,
    /// It changes nothing, and the run goes on with the next one.
    Skip,
    /// The run goes back to a step before it, and goes on from there by another plan.
    Rewind,
}

/// What becomes of a step whose loss lies far above those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSpike {
    /// It is a step like any other.
    Off,
    /// The run ends.
    Stop,
    /// It changes nothing, and the run goes on with the next one.
    Skip,
    /// The run goes back to a step before it, and goes on from there by another plan.
    Rewind,
}

words!(OnNotFinite {
    Stop = "stop",
    Skip = "skip",
    Rewind = "rewind",
});
words!(OnSpike {
    Off = "off",
    Stop = "stop",
    Skip = "skip",
    Rewind = "rewind",
});
