//! What can happen to a run, by name.

use clap::ValueEnum;
use serde::Serialize;

/// A kind of fault. [`super::play`] has one function for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// A trainer is killed.
    Kill,
    /// Two trainers are killed at once.
    KillTwo,
    /// A second trainer is killed while the run recovers from the loss of a first one.
    KillInRecovery,
    /// Some trainer is killed while a new one is on its way into the run.
    KillWhileJoining,
    /// A trainer is stopped for longer than anybody waits, and then goes on.
    Stop,
    /// A trainer is stopped for 0.2 s.
    FreezeShort,
    /// A trainer is asked to go.
    Term,
    /// A trainer comes.
    Join,
    /// The coordinator is killed and started again.
    KillCoordinator,
    /// The coordinator and a trainer are killed at once; the coordinator is started again.
    KillBoth,
    /// Every trainer is killed at once; only checkpoints are left.
    KillAll,
    /// The newest checkpoint is damaged, and then every trainer is killed.
    DamageCheckpoint,
    /// The disk of the checkpoints is full for some time.
    FullDisk,
    /// The network drops every packet between two hosts, for longer than anybody waits.
    Cut,
    /// The network between two hosts is slow for three seconds.
    Slow,
}

impl Kind {
    pub(crate) fn all() -> &'static [Kind] {
        Kind::value_variants()
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// How often it comes among the others.
    pub(super) fn weight(self) -> usize {
        match self {
            Kind::Kill => 4,
            Kind::KillInRecovery | Kind::KillWhileJoining | Kind::Term | Kind::Join | Kind::KillCoordinator => 2,
            Kind::KillAll | Kind::DamageCheckpoint | Kind::FullDisk => 1,
            Kind::KillTwo | Kind::Stop | Kind::FreezeShort | Kind::KillBoth | Kind::Cut | Kind::Slow => 1,
        }
    }

    /// Trainers without which it would mean something else: the last trainer of a run that is asked to go stops the run, and
    /// with the last one that is killed every snapshot is lost.
    pub(super) fn least_trainers(self) -> u32 {
        match self {
            Kind::Join | Kind::KillCoordinator | Kind::FreezeShort => 1,
            Kind::KillAll | Kind::DamageCheckpoint | Kind::FullDisk => 1,
            Kind::KillTwo | Kind::KillInRecovery => 3,
            _ => 2,
        }
    }

    /// Whether the trainer that it brings must find room.
    pub(super) fn brings_one(self) -> bool {
        matches!(self, Kind::Join | Kind::KillWhileJoining)
    }

    /// Whether it needs a small disk, which only root can make.
    pub(crate) fn needs_disk(self) -> bool {
        self == Kind::FullDisk
    }

    /// Whether it needs two hosts, which only root can make.
    pub(crate) fn needs_hosts(self) -> bool {
        matches!(self, Kind::Cut | Kind::Slow)
    }
}
