//! Room and speed of what is written to.

use crate::catalogue::Id;
use crate::checks::bytes;
use crate::facts::Facts;
use crate::facts::disk::{Disk, Speed};
use crate::finding::Finding;
use crate::wanted::{DiskNeed, Wanted};

/// What is the folder of the run.
pub const RUN: &str = "run folder";
/// What is the folder of its checkpoints.
pub const CHECKPOINTS: &str = "checkpoint folder";

/// For the ledger, metrics and logs of a short run: less than this is too little for sure.
const RECORDS: u64 = 1 << 20;
/// Below so many bytes a second a checkpoint holds up a run.
const SLOW: f64 = 20e6;
/// A rate is judged from so many bytes on: less measures the wait only.
const JUDGED: u64 = 4 << 20;
/// A commit that takes so long holds up steps.
const SLOW_SYNC: f64 = 0.5;
/// A run makes a file now and then: logs, parts of checkpoints.
const FILES: u64 = 100;

pub(super) fn disks(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let has_own = facts.disks.iter().any(|disk| disk.purpose == CHECKPOINTS);
    let need = wanted.and_then(|wanted| wanted.disk);
    facts.disks.iter().flat_map(|disk| of(disk, need, has_own)).collect()
}

/// `elsewhere`: checkpoints have a folder of their own.
fn of(disk: &Disk, need: Option<DiskNeed>, elsewhere: bool) -> Vec<Finding> {
    let place = disk.folder.display();
    let room = "make room, or write elsewhere (another current folder, checkpoint.store)";
    let speed = match &disk.written {
        Ok(speed) => speed,
        Err(refusal) if refusal.full => {
            let what = format!("the {} cannot be written: {}", disk.purpose, refusal.reason);
            // Without checkpoints a run goes on.
            let id = if disk.purpose == CHECKPOINTS {
                Id::DiskLow
            } else {
                Id::DiskFull
            };
            return vec![Finding::new(id, place, what, room)];
        }
        Err(refusal) => {
            let looked_at = disk.looked_at.display();
            let what = format!(
                "the {} cannot be written in {looked_at}: {}",
                disk.purpose, refusal.reason
            );
            let remedy = "start where this user may write, or change owner, mode or mount of the folder";
            let id = match disk.purpose.as_str() {
                CHECKPOINTS => Id::CheckpointsUnwritable,
                _ => Id::DiskUnwritable,
            };
            return vec![Finding::new(id, place, what, remedy)];
        }
    };
    let mut findings = Vec::new();
    findings.extend(
        need.and_then(|need| too_little(disk, need, elsewhere))
            .map(|(id, what)| Finding::new(id, &place, what, room)),
    );
    if let Some(files) = disk.files_free.filter(|files| *files < FILES) {
        let what = format!("{files} more files can be made there");
        findings.push(Finding::new(
            Id::InodesLow,
            &place,
            what,
            "remove files that nobody needs, or write elsewhere",
        ));
    }
    findings.extend(slow(speed).map(|what| {
        let remedy = "use a disk of this machine for the run's folder, and checkpoint.store for a slow one; see that nothing else keeps it busy";
        Finding::new(Id::DiskSlow, &place, what, remedy)
    }));
    findings
}

fn too_little(disk: &Disk, need: DiskNeed, elsewhere: bool) -> Option<(Id, String)> {
    if disk.size == 0 {
        return None;
    }
    let free = bytes(disk.free);
    let checkpoints = need.checkpoint.saturating_mul(need.checkpoints);
    let kept = format!("{} checkpoints of {}", need.checkpoints, bytes(need.checkpoint));
    if disk.purpose == CHECKPOINTS {
        let low = disk.free < checkpoints;
        return low.then(|| (Id::DiskLow, format!("{free} are free, and {kept} are there at a time")));
    }
    let own = need.weights + RECORDS;
    if disk.free < own {
        let what = format!(
            "{free} are free, and ledger, metrics and final weights need {}",
            bytes(own)
        );
        return Some((Id::DiskFull, what));
    }
    if !elsewhere && disk.free < own + checkpoints {
        return Some((
            Id::DiskLow,
            format!("{free} are free, and besides the final weights {kept} are there at a time"),
        ));
    }
    let low = disk.free < need.alert;
    low.then(|| {
        (
            Id::DiskLow,
            format!("{free} are free, and alerts.disk_mib wants {}", bytes(need.alert)),
        )
    })
}

fn slow(speed: &Speed) -> Option<String> {
    let rate = speed.bytes as f64 / speed.seconds.max(1e-9);
    if speed.bytes >= JUDGED && rate < SLOW {
        return Some(format!(
            "{} took {:.2} s to be on the disk: {:.1} MB/s",
            bytes(speed.bytes),
            speed.seconds,
            rate / 1e6
        ));
    }
    let low = speed.sync_seconds > SLOW_SYNC;
    low.then(|| format!("one block took {:.2} s to be on the disk", speed.sync_seconds))
}
