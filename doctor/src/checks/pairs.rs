//! The ways between processes.

use crate::catalogue::Id;
use crate::checks::network::{CLOCK, SKEW, differ};
use crate::facts::Facts;
use crate::finding::Finding;
use crate::pairs::Pair;

/// What a way between two ranks should have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// At least so many megabits a second.
    pub megabits: f64,
    /// At most so many milliseconds, there and back.
    pub milliseconds: f64,
}

impl Default for Expected {
    /// A gigabit network, in one building. What it takes to send a gigabit is sent and more: headers, and others.
    fn default() -> Expected {
        Expected {
            megabits: 800.0,
            milliseconds: 2.0,
        }
    }
}

/// What is missing, slow, or of another time.
pub(super) fn all(facts: &Facts, expected: &Expected) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((missing, of)) = &facts.ranks_missing {
        let list: Vec<String> = missing.iter().map(u32::to_string).collect();
        findings.push(Finding::new(
            Id::RanksMissing,
            format!("ranks {}", list.join(", ")),
            format!("of {of} ranks {} did not come to be measured", missing.len()),
            "see what their processes say, and whether their hosts reach the address that is given with --meet",
        ));
    }
    findings.extend(facts.pairs.iter().flat_map(|pair| of(pair, expected)));
    findings
}

fn of(pair: &Pair, expected: &Expected) -> Vec<Finding> {
    let place = format!("{} – {}", pair.from, pair.to);
    let way = match &pair.way {
        Ok(way) => way,
        Err(reason) => {
            let remedy = "see that no firewall or NetworkPolicy is between them: ranks reach each other on any port";
            return vec![Finding::new(Id::PeerUnreachable, place, reason, remedy)];
        }
    };
    let mut findings = Vec::new();
    let slowest = way.megabits_to.min(way.megabits_from);
    if slowest < expected.megabits {
        let what = format!(
            "the way carries {slowest:.1} Mbit/s, and {:.0} are expected",
            expected.megabits
        );
        let remedy = "see the speed and errors of both network cards (`ethtool`), what else uses the network, and whether the right interface is used; --expect-mbit says what is enough";
        findings.push(Finding::new(Id::LinkSlow, &place, what, remedy));
    }
    if way.milliseconds > expected.milliseconds {
        let what = format!(
            "there and back takes {:.2} ms, and at most {:.1} are expected",
            way.milliseconds, expected.milliseconds
        );
        let remedy = "keep ranks in one building and one network; --expect-ms says what is enough";
        findings.push(Finding::new(Id::LatencyHigh, &place, what, remedy));
    }
    if way.clock_ahead.abs() > SKEW {
        findings.push(Finding::new(
            Id::ClockSkew,
            &place,
            differ("the second one's", way.clock_ahead),
            CLOCK,
        ));
    }
    findings
}
