//! `[batch.adaptive]`: the batch grows while a run trains, as the noise of its gradient says.

/// How the batch is decided on while the run trains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaptiveSection {
    /// Steps between two decisions. One after step d holds from step d + `every` + 1 on, so that it is the same however far
    /// ahead plans are issued.
    pub every: u64,
    /// The largest batch, samples.
    pub most: u64,
    /// What one decision multiplies the batch by; above 1.
    pub growth: f64,
    /// Decisions in a row that must want the same before the batch changes: against swinging.
    pub patience: u32,
    /// Whether the batch may fall again, never below the one of the schedule.
    pub shrinks: bool,
    /// Steps over which the noise is smoothed.
    pub smooth: u64,
    /// What decides.
    pub by: AdaptiveBy,
}

/// What decides on the batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdaptiveBy {
    /// The batch grows while the next size is at most this many times the noise scale.
    Noise {
        /// Batch ÷ noise scale that is aimed at.
        target: f64,
    },
    /// The batch grows while samples a second × what a sample is worth grow (AdaptDL, arXiv 2008.12260). It depends on how fast
    /// steps are: a run that is replayed decides the same, another run of the same config may not.
    Goodput,
}

impl AdaptiveBy {
    /// The words of the config.
    pub const WORDS: [&'static str; 2] = ["noise", "goodput"];
}
