//! Prepared data, and whether it fits the config.

use crate::catalogue::Id;
use crate::facts::Facts;
use crate::facts::data::{Data, Fault};
use crate::finding::Finding;
use crate::wanted::Wanted;

/// A file may be so far in the future: clocks of a file server differ a little.
const AHEAD: f64 = 120.0;

pub(super) fn data(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.data.iter().flat_map(of).collect();
    let sound = |data: &&Data| data.fault.is_none();
    if let (Some(wanted), Some(data)) = (wanted, facts.data.first().filter(sound)) {
        findings.extend(
            unfit(data, wanted).map(|(what, remedy)| Finding::new(Id::DataUnfit, data.folder.display(), what, remedy)),
        );
        let validation = facts.data.get(1).filter(sound);
        if let Some(validation) = validation.filter(|validation| validation.tokenizer != data.tokenizer) {
            let what = format!(
                "data.validation was prepared with another tokenizer than data.path ({})",
                data.folder.display()
            );
            let remedy = "prepare both with the same tokenizer";
            findings.push(Finding::new(Id::DataUnfit, validation.folder.display(), what, remedy));
        }
    }
    findings
}

fn of(data: &Data) -> Vec<Finding> {
    let mut findings = Vec::new();
    if data.ahead > AHEAD {
        let what = format!(
            "a file of the data is {:.0} s newer than this machine's clock",
            data.ahead
        );
        let remedy = "set the clock (`chronyc tracking`, `timedatectl`), and keep it set by NTP";
        findings.push(Finding::new(Id::ClockBehind, data.folder.display(), what, remedy));
    }
    if let Some((fault, path, reason)) = &data.fault {
        let (id, remedy) = match fault {
            Fault::Missing => (
                Id::DataMissing,
                "make it with `lockstep data prepare --out DIR PATH…`, mount it, or correct data.path",
            ),
            Fault::Version => (
                Id::DataVersion,
                "use the build that wrote it, or prepare the data again",
            ),
            Fault::Damaged => (
                Id::DataDamaged,
                "copy the data folder anew, or make it again with `lockstep data prepare`",
            ),
        };
        findings.push(Finding::new(id, path.display(), reason, remedy));
    }
    findings
}

fn unfit(data: &Data, wanted: &Wanted) -> Option<(String, &'static str)> {
    let vocabulary = data.vocabulary.unwrap_or(0);
    if let Some(rows) = wanted.vocabulary.filter(|rows| *rows < vocabulary) {
        let what = format!("model.vocab is {rows}, and the data has a vocabulary of {vocabulary}");
        return Some((what, "raise model.vocab, or leave it out"));
    }
    (data.training_tokens <= wanted.sequence_length.into()).then(|| {
        let what = format!(
            "there are {} training tokens, too few for one sequence of data.sequence_length = {} and the token after it",
            data.training_tokens, wanted.sequence_length
        );
        (what, "prepare more text, or shorten the sequences")
    })
}
