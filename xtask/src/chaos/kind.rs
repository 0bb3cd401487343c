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
    /// Two of the others happen at the same moment.
    Pair,
    /// A bit of a working copy changes in the memory of a trainer.
    FlipWorking,
    /// A bit of a float32 master changes in the memory of its owner.
    FlipMaster,
    /// A bit of a momentum changes in the memory of its owner.
    FlipMomentum,
    /// The device thread of a trainer hangs, and its process lives on.
    Hang,
    /// Every trainer is killed at once; only checkpoints are left.
    KillAll,
    /// The newest checkpoint is damaged, and then every trainer is killed.
    DamageCheckpoint,
    /// All processes are killed while a checkpoint is half written.
    TornCheckpoint,
    /// The disk of the checkpoints is full for some time.
    FullDisk,
    /// The S3 store of the checkpoints refuses requests, cuts connections and loses answers for some time.
    StoreFails,
    /// The S3 store of the checkpoints answers late for some time.
    StoreSlow,
    /// A trainer is killed while the S3 store of the checkpoints fails.
    KillWhileStoreFails,
    /// The network drops every packet between two hosts, for longer than anybody waits.
    Cut,
    /// The network between two hosts is slow for three seconds.
    Slow,
}

/// Where the checkpoints of a run lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ground {
    /// In a folder.
    Folder,
    /// In a bucket of an S3 server.
    Bucket,
}

/// What a pair is made of: what happens in a moment.
pub(super) const HALVES: [Kind; 9] = [
    Kind::Kill,
    Kind::Stop,
    Kind::Term,
    Kind::Join,
    Kind::KillCoordinator,
    Kind::FreezeShort,
    Kind::FlipWorking,
    Kind::FlipMaster,
    Kind::FlipMomentum,
];

impl Kind {
    /// Those that come where none is asked for.
    pub(crate) fn by_default() -> Vec<Kind> {
        Kind::value_variants().to_vec()
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// How often it comes among the others in a run whose checkpoints lie there.
    pub(super) fn weight(self, ground: Ground) -> usize {
        match (self, ground) {
            // As many as a short run has there.
            (Kind::StoreFails | Kind::StoreSlow, Ground::Bucket) => 1,
            (Kind::KillAll | Kind::DamageCheckpoint | Kind::TornCheckpoint, Ground::Bucket) => 1,
            (Kind::KillWhileStoreFails, Ground::Bucket) => 1,
            (Kind::StoreFails | Kind::StoreSlow | Kind::KillWhileStoreFails, Ground::Folder) => 0,
            (_, Ground::Bucket) => 0,
            (Kind::Kill | Kind::Pair, Ground::Folder) => 2,
            (_, Ground::Folder) => 1,
        }
    }

    /// Trainers without which it would mean something else: the last trainer of a run that is asked to go stops the run, and
    /// with the last one that is killed every snapshot is lost.
    pub(super) fn least_trainers(self) -> u32 {
        match self {
            Kind::Join | Kind::KillCoordinator | Kind::FreezeShort => 1,
            Kind::FlipWorking | Kind::FlipMaster | Kind::FlipMomentum | Kind::Hang => 1,
            Kind::KillAll | Kind::DamageCheckpoint | Kind::TornCheckpoint | Kind::FullDisk => 1,
            Kind::StoreFails | Kind::StoreSlow => 1,
            Kind::KillTwo | Kind::KillInRecovery => 3,
            _ => 2,
        }
    }

    /// Trainers of the run that it takes away.
    fn takes(self) -> u32 {
        u32::from(matches!(self, Kind::Kill | Kind::Stop | Kind::Term))
    }

    /// Trainers that it brings, which must find room.
    pub(super) fn brings(self) -> u32 {
        u32::from(matches!(self, Kind::Join | Kind::KillWhileJoining | Kind::Hang) || self.flips())
    }

    /// Whether a bit changes in the memory of a trainer that it brings.
    pub(super) fn flips(self) -> bool {
        matches!(self, Kind::FlipWorking | Kind::FlipMaster | Kind::FlipMomentum)
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

/// Trainers that two kinds at once need, so that one is left, and those that they bring.
pub(super) fn room_of_pair(halves: [Kind; 2]) -> (u32, u32) {
    let takes: u32 = halves.iter().map(|half| half.takes()).sum();
    (takes + 1, halves.iter().map(|half| half.brings()).sum())
}
