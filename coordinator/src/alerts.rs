//! What people are told about without having asked: a loss that spikes, a run that stalls, a rank that is slower than its
//! peers, data that comes late, a disk that fills, memory that changed, checkpoints that are not written, a certificate that
//! is about to expire.
//!
//! Way of data: committed steps ([`Alerts::stepped`]), a look at members twice a second ([`Alerts::look`]) and what went
//! wrong once ([`Alerts::happened`]) → [`Alert`]s with a sentence, raised and cleared → status, page, `/metrics`, webhook.
//! Pure: the time comes from outside, so the same inputs give the same alerts. An alert is cleared well below the value at
//! which it is raised, so that it does not flicker.

mod peers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_config::AlertsSection;
use lockstep_proto::domain::{Alert, CommittedStep, MemberStatus};

pub(crate) use crate::alerts::peers::Peers;
use crate::alerts::peers::Slower;

/// Steps over which mean and deviation of the loss are smoothed.
const SMOOTHING: f64 = 32.0;
/// A spread of so few steps says nothing.
const LEAST_STEPS: u64 = 16;
/// Steps over which the share of data is smoothed.
const DATA_SMOOTHING: f64 = 16.0;
/// So many good steps end a spike.
const CALM_STEPS: u64 = 10;
/// What happens once is shown for so many seconds.
const LASTS: f64 = 900.0;
/// Alerts that were cleared and are still shown.
const MOST_CLEARED: usize = 50;

/// What an alert is about. Its word is that of the page, of `/metrics` and of the webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Spike,
    Stall,
    Straggler,
    SlowData,
    Disk,
    Drift,
    Checkpoint,
    Certificate,
}

impl Kind {
    pub(crate) const ALL: [Kind; 8] = [
        Kind::Spike,
        Kind::Stall,
        Kind::Straggler,
        Kind::SlowData,
        Kind::Disk,
        Kind::Drift,
        Kind::Checkpoint,
        Kind::Certificate,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Spike => "spike",
            Kind::Stall => "stall",
            Kind::Straggler => "straggler",
            Kind::SlowData => "slow-data",
            Kind::Disk => "disk",
            Kind::Drift => "drift",
            Kind::Checkpoint => "checkpoint",
            Kind::Certificate => "certificate",
        }
    }
}

/// What is seen of a run at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Glance<'a> {
    /// Seconds of Unix time.
    pub(crate) now: f64,
    /// Name of the run's phase, and what it waits for.
    pub(crate) phase: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) members: &'a [MemberStatus],
    /// The rank that the others have been waiting for, and where it is.
    pub(crate) waited_for: Option<&'a (String, String)>,
    /// Free space of the run's folder.
    pub(crate) free_mib: Option<u64>,
    /// When a certificate expires, in seconds of Unix time.
    pub(crate) certificate_until: Option<f64>,
}

/// What a rule says.
enum Verdict {
    Bad(String),
    Good,
    /// In between: what was raised stays, and nothing is raised.
    Unclear,
}

/// Every alert of a run, and what is needed to judge the next moment.
#[derive(Clone, Debug)]
pub(crate) struct Alerts {
    rules: AlertsSection,
    raised: Vec<(Kind, Alert)>,
    cleared: VecDeque<Alert>,
    /// What was raised or cleared and has not been taken yet.
    news: Vec<Alert>,
    peers: Peers,
    /// Smoothed mean and deviation of the loss, over so many steps.
    loss: (f64, f64, u64),
    /// Good steps since the last bad one.
    calm: u64,
    /// Smoothed share of data.
    data: Option<f64>,
    /// Smoothed seconds of a step, and when the last one was committed.
    usual: f64,
    committed: Option<f64>,
    began: f64,
}

impl Alerts {
    pub(crate) fn new(rules: AlertsSection, now: f64) -> Alerts {
        Alerts {
            rules,
            raised: Vec::new(),
            cleared: VecDeque::new(),
            news: Vec::new(),
            peers: Peers::default(),
            loss: (0.0, 0.0, 0),
            calm: 0,
            data: None,
            usual: 0.0,
            committed: None,
            began: now,
        }
    }

    /// Those that are raised, then those that were cleared, newest first.
    pub(crate) fn all(&self) -> Vec<Alert> {
        let raised = self.raised.iter().map(|(_, alert)| alert);
        raised.chain(self.cleared.iter().rev()).cloned().collect()
    }

    /// Those that are raised.
    pub(crate) fn raised(&self) -> Vec<Alert> {
        self.raised.iter().map(|(_, alert)| alert.clone()).collect()
    }

    /// How many of a kind are raised.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.raised.iter().filter(|(raised, _)| *raised == kind).count()
    }

    /// What was raised or cleared since this was asked the last time.
    pub(crate) fn take_news(&mut self) -> Vec<Alert> {
        std::mem::take(&mut self.news)
    }

    /// How the ranks spend their time.
    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Takes what earlier terms committed: it is what is usual, and nothing to be told about.
    pub(crate) fn learn(&mut self, step: &CommittedStep) {
        if step.skipped.is_none() && step.loss.is_finite() {
            self.smooth_loss(step.loss);
        }
        self.smooth_time(step);
    }

    /// A step was committed.
    pub(crate) fn stepped(&mut self, step: &CommittedStep, now: f64) {
        self.committed = Some(now);
        self.smooth_time(step);
        let verdict = self.spike(step);
        if let Verdict::Good = verdict {
            self.smooth_loss(step.loss);
        }
        self.calm = if let Verdict::Bad(_) = verdict {
            0
        } else {
            self.calm + 1
        };
        let verdict = match verdict {
            Verdict::Good if self.calm < CALM_STEPS => Verdict::Unclear,
            verdict => verdict,
        };
        self.judge(Kind::Spike, "", verdict, now);
        let verdict = self.slow_data(step);
        self.judge(Kind::SlowData, "", verdict, now);
    }

    /// The run went back: what the loss usually is begins anew.
    pub(crate) fn rewound(&mut self) {
        self.loss = (0.0, 0.0, 0);
    }

    fn spike(&self, step: &CommittedStep) -> Verdict {
        let number = step.step;
        if let Some(reason) = &step.skipped {
            return Verdict::Bad(format!("step {number} was skipped: {reason}"));
        }
        if !step.loss.is_finite() {
            return Verdict::Bad(format!("the loss of step {number} is {}", step.loss));
        }
        let (mean, deviation, steps) = self.loss;
        // Deviations of a loss that hardly moves are of no use as a measure.
        let deviation = deviation.max(mean.abs() * 1e-3);
        let sigmas = (step.loss - mean) / deviation;
        if steps < LEAST_STEPS || sigmas < self.rules.spike_sigmas {
            return Verdict::Good;
        }
        Verdict::Bad(format!(
            "the loss of step {number} is {:.4}, {sigmas:.1} deviations above its recent mean of {mean:.4}",
            step.loss
        ))
    }

    fn smooth_loss(&mut self, loss: f64) {
        let (mean, deviation, steps) = &mut self.loss;
        let share = 1.0 / (*steps as f64 + 1.0).min(SMOOTHING);
        *deviation += share * ((loss - *mean).abs() * 1.25 - *deviation) * f64::from(u8::from(*steps > 0));
        *mean += share * (loss - *mean);
        *steps += 1;
    }

    fn smooth_time(&mut self, step: &CommittedStep) {
        let seconds = step.step_ms / 1e3;
        match self.usual > 0.0 {
            true => self.usual += (seconds - self.usual) / SMOOTHING,
            false => self.usual = seconds,
        }
    }

    fn slow_data(&mut self, step: &CommittedStep) -> Verdict {
        let data = step
            .phases
            .iter()
            .find(|(phase, _)| phase.trim_end_matches("_ms") == "data");
        let Some((_, ms)) = data.filter(|_| step.step_ms > 0.0) else {
            return Verdict::Unclear;
        };
        let share = ms / step.step_ms;
        let smoothed = self
            .data
            .map_or(share, |before| before + (share - before) / DATA_SMOOTHING);
        self.data = Some(smoothed);
        if self.loss.2 < LEAST_STEPS {
            return Verdict::Unclear; // the first steps wait for files that nobody has read yet
        }
        let percent = smoothed * 100.0;
        let sentence = format!(
            "rank 0 waits for data for {percent:.0} % of its steps: a faster disk or another place of data.path would help"
        );
        hysteresis(smoothed, self.rules.data_share, 0.5, sentence)
    }

    /// A look at the run.
    pub(crate) fn look(&mut self, glance: &Glance<'_>) {
        let now = glance.now;
        let is_training = glance.phase == "training";
        if is_training {
            self.peers.saw(glance.members);
        }
        let verdict = self.stall(glance);
        self.judge(Kind::Stall, "", verdict, now);
        self.judge_stragglers(glance, is_training);
        if let Some(free) = glance.free_mib {
            let least = self.rules.disk_mib;
            let verdict = match free {
                free if free < least => Verdict::Bad(format!(
                    "the disk of the run's folder has {free} MiB left, less than alerts.disk_mib = {least}"
                )),
                free if free < least + least / 5 => Verdict::Unclear,
                _ => Verdict::Good,
            };
            self.judge(Kind::Disk, "", verdict, now);
        }
        if let Some(until) = glance.certificate_until {
            let days = (until - now) / 86_400.0;
            let verdict = match days {
                days if days <= 0.0 => Verdict::Bad("the certificate has expired: renew it".to_owned()),
                days if days < self.rules.certificate_days as f64 => {
                    let left = match days < 2.0 {
                        true => format!("{:.1} hours", days * 24.0),
                        false => format!("{days:.1} days"),
                    };
                    Verdict::Bad(format!("the certificate expires in {left}: renew it"))
                }
                _ => Verdict::Good,
            };
            self.judge(Kind::Certificate, "", verdict, now);
        }
        let over: Vec<(Kind, String)> = self
            .raised
            .iter()
            .filter(|(kind, alert)| matches!(kind, Kind::Drift) && now - alert.since >= LASTS)
            .map(|(kind, alert)| (*kind, alert.about.clone()))
            .collect();
        for (kind, about) in over {
            self.judge(kind, &about, Verdict::Good, now);
        }
    }

    fn stall(&self, glance: &Glance<'_>) -> Verdict {
        let is_validating = glance.members.iter().any(|member| member.phase == "validation");
        match glance.phase {
            "paused" | "ended" => return Verdict::Good,
            _ if is_validating => return Verdict::Unclear,
            _ => {}
        }
        let waited = glance.now - self.committed.unwrap_or(self.began);
        let limit = self.rules.stall_seconds.max(self.rules.stall_factor * self.usual);
        if waited < limit {
            // Only a step ends it: the clock begins anew with one.
            return if self.committed.is_some() {
                Verdict::Good
            } else {
                Verdict::Unclear
            };
        }
        let usual = match self.usual > 0.0 {
            true => format!(", and one usually takes {:.1} s", self.usual),
            false => String::new(),
        };
        Verdict::Bad(format!(
            "no step was committed for {waited:.0} s{usual}: {}",
            glance.reason
        ))
    }

    fn judge_stragglers(&mut self, glance: &Glance<'_>, is_training: bool) {
        let now = glance.now;
        let slow = if is_training { self.peers.slower() } else { Vec::new() };
        let slow: BTreeMap<&str, &Slower> = slow.iter().map(|slow| (slow.member.as_str(), slow)).collect();
        let mut here = BTreeSet::new();
        for member in glance.members {
            let name = match &member.place {
                Some((rank, _)) => format!("rank {rank}"),
                None => continue,
            };
            let share = slow.get(member.info.member.as_str());
            let verdict = match (share, is_training) {
                (_, false) => Verdict::Unclear,
                (None, true) => Verdict::Good,
                (Some(slow), true) => {
                    let (more, peers) = (slow.more * 100.0, slow.peers_wait * 100.0);
                    let sentence = format!(
                        "{name} ({} on {}) is slower than its peers in {}: it spends {more:.0} % more of its time there, and they wait for {peers:.0} % of theirs",
                        member.info.member, member.info.host, slow.phase
                    );
                    hysteresis(slow.gap, self.rules.straggler_share, 0.6, sentence)
                }
            };
            self.judge(Kind::Straggler, &name, verdict, now);
            here.insert(name);
        }
        let gone: Vec<String> = self
            .raised
            .iter()
            .filter(|(kind, alert)| *kind == Kind::Straggler && !alert.about.is_empty() && !here.contains(&alert.about))
            .map(|(_, alert)| alert.about.clone())
            .collect();
        for about in gone {
            self.judge(Kind::Straggler, &about, Verdict::Good, now);
        }
        let verdict = match glance.waited_for.filter(|_| is_training) {
            Some((name, how)) => Verdict::Bad(format!("the others wait for {name}: {how}")),
            None => Verdict::Good,
        };
        self.judge(Kind::Straggler, "", verdict, now);
    }

    /// Something went wrong once.
    pub(crate) fn happened(&mut self, kind: Kind, about: &str, sentence: String, now: f64) {
        self.judge(kind, about, Verdict::Bad(sentence), now);
    }

    /// What went wrong has gone well since.
    pub(crate) fn went_well(&mut self, kind: Kind, now: f64) {
        self.judge(kind, "", Verdict::Good, now);
    }

    /// The run is over, and with it everything that was wrong.
    pub(crate) fn ended(&mut self, now: f64) {
        let raised: Vec<(Kind, String)> = self
            .raised
            .iter()
            .map(|(kind, alert)| (*kind, alert.about.clone()))
            .collect();
        for (kind, about) in raised {
            self.judge(kind, &about, Verdict::Good, now);
        }
    }

    fn judge(&mut self, kind: Kind, about: &str, verdict: Verdict, now: f64) {
        let at = self
            .raised
            .iter()
            .position(|(raised, alert)| *raised == kind && alert.about == about);
        match (verdict, at) {
            (Verdict::Bad(sentence), Some(at)) => self.raised[at].1.sentence = sentence,
            (Verdict::Bad(sentence), None) => {
                let alert = Alert {
                    kind: kind.word().to_owned(),
                    about: about.to_owned(),
                    since: now,
                    until: None,
                    sentence,
                };
                self.tell(&alert);
                self.raised.push((kind, alert));
            }
            (Verdict::Good, Some(at)) => {
                let (_, mut alert) = self.raised.remove(at);
                alert.until = Some(now);
                self.tell(&alert);
                self.cleared.push_back(alert);
                if self.cleared.len() > MOST_CLEARED {
                    self.cleared.pop_front();
                }
            }
            (Verdict::Good, None) | (Verdict::Unclear, _) => {}
        }
    }

    /// Keeps what nobody has taken yet, the newest of it.
    fn tell(&mut self, alert: &Alert) {
        if self.news.len() >= MOST_CLEARED {
            self.news.remove(0);
        }
        self.news.push(alert.clone());
    }
}

/// Bad from `limit` on, good below so much of it.
fn hysteresis(value: f64, limit: f64, good_below: f64, sentence: String) -> Verdict {
    if value >= limit {
        Verdict::Bad(sentence)
    } else if value < limit * good_below {
        Verdict::Good
    } else {
        Verdict::Unclear
    }
}

#[cfg(test)]
mod tests;
