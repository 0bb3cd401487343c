//! Facts against what a run wants. Pure: nothing is looked at here, and what was not gathered is not judged.

mod data;
mod disks;
mod gpus;
mod machine;
mod network;
mod pairs;
mod programs;

use crate::catalogue::Id;
use crate::facts::Facts;
use crate::finding::{Finding, Severity};
use crate::wanted::Wanted;

pub use disks::{CHECKPOINTS, RUN};
pub use pairs::Expected;

/// Everything that is not as it should be, in the order in which a run would meet it.
pub fn all(facts: &Facts, wanted: Option<&Wanted>, expected: &Expected) -> Vec<Finding> {
    [
        machine::processors(facts, wanted),
        machine::memory(facts, wanted),
        machine::limits(facts, wanted),
        disks::disks(facts, wanted),
        gpus::gpus(facts, wanted),
        programs::programs(facts, wanted),
        data::data(facts, wanted),
        network::own(facts, wanted),
        network::coordinator(facts, wanted),
        pairs::all(facts, expected),
    ]
    .concat()
}

/// What the launcher tells before a run: what the run can be refused or spoilt by. What a machine simply is stays for the
/// whole report.
pub fn short(facts: &Facts, wanted: &Wanted) -> Vec<Finding> {
    let findings = all(facts, Some(wanted), &Expected::default()).into_iter();
    let is_lasting = |finding: &Finding| matches!(finding.id, Id::NoAvx2 | Id::NoBf16 | Id::LibtorchFolder);
    findings.filter(|finding| !is_lasting(finding)).collect()
}

/// Whether the launcher refuses a run for it. Whether a GPU can be used the trainer finds out by using it, at once and in its own
/// words: what files say of it is told, and refuses nothing.
pub fn refuses(finding: &Finding) -> bool {
    let is_of_a_gpu = matches!(
        finding.id,
        Id::GpuNone
            | Id::GpusFew
            | Id::DriverMissing
            | Id::DriverOld
            | Id::DriverMixed
            | Id::CudaLibrariesMissing
            | Id::NcclMissing
            | Id::NcclOld
    );
    finding.id.severity() == Severity::Error && !is_of_a_gpu
}

/// Bytes in words.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} bytes"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// A number and a word, which gets an s where there are several.
pub(crate) fn counted(count: u64, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}
