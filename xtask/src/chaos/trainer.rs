//! A trainer of the run, and what may become of it.

use std::process::ExitStatus;

use crate::chaos::process::Process;

/// What may become of a trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It trains until the run is over.
    Trains,
    /// It is stopped or cut off, and may have been given up.
    IsAway,
    /// It was asked to go, and ends with exit code 3.
    Goes,
    /// A bit of its memory will change, and it ends with exit code 4, set apart from the run.
    IsDrilled,
}

impl Fate {
    /// If it is not how a trainer of this fate ends: what it was that ended so, as words before "ended".
    fn contradicts(self, code: Option<i32>) -> Option<&'static str> {
        match self {
            Fate::Trains => Some(""),
            Fate::IsAway => None,
            Fate::Goes => (code != Some(3)).then_some("was asked to go and "),
            Fate::IsDrilled => (code != Some(4)).then_some("has a bit that changes and "),
        }
    }
}

pub(super) struct Trainer {
    pub(super) process: Process,
    pub(super) fate: Fate,
    pub(super) host: usize,
}

impl Trainer {
    /// If it should not have ended like this: what it was that ended, as words before "ended".
    pub(super) fn should_not_have_ended(&self, status: ExitStatus) -> Option<&'static str> {
        self.fate.contradicts(status.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trainer_ends_as_its_fate_says_and_one_that_trains_does_not_end() {
        for (fate, code, is_well) in [
            (Fate::Trains, Some(0), false),
            (Fate::IsAway, Some(1), true),
            (Fate::IsAway, None, true),
            (Fate::Goes, Some(3), true),
            (Fate::Goes, Some(0), false),
            (Fate::IsDrilled, Some(4), true),
            (Fate::IsDrilled, Some(3), false),
            (Fate::IsDrilled, None, false),
        ] {
            assert_eq!(fate.contradicts(code).is_none(), is_well, "{fate:?}, {code:?}");
        }
    }
}
