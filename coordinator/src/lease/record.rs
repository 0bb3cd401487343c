//! A Lease as the cluster keeps it, and whose it is: pure.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

/// Seconds of silence after which a holder has lost it.
const SECONDS: u64 = 15;

/// The whole object, so that what others have written into it stays.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record(Value);

impl Record {
    /// Of the cluster's answer.
    pub(super) fn parse(text: &str) -> Option<Record> {
        let object: Value = serde_json::from_str(text).ok()?;
        object["metadata"]["resourceVersion"]
            .is_string()
            .then_some(Record(object))
    }

    pub(super) fn text(&self) -> String {
        self.0.to_string()
    }

    /// Another one after every change.
    fn version(&self) -> &str {
        self.0["metadata"]["resourceVersion"].as_str().unwrap_or_default()
    }

    /// Who has it.
    pub(super) fn holder(&self) -> Option<&str> {
        self.0["spec"]["holderIdentity"]
            .as_str()
            .filter(|holder| !holder.is_empty())
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.0["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(SECONDS))
    }

    /// With this holder, at this moment.
    pub(super) fn held(&self, holder: &str, now: SystemTime) -> Record {
        let is_other = self.holder() != Some(holder);
        let mut record = self.with_spec();
        let spec = &mut record.0["spec"];
        let now = json!(humantime::format_rfc3339_micros(now).to_string());
        if is_other {
            spec["acquireTime"] = now.clone();
            spec["leaseTransitions"] = json!(spec["leaseTransitions"].as_u64().unwrap_or(0) + 1);
        }
        spec["holderIdentity"] = json!(holder);
        spec["leaseDurationSeconds"] = json!(SECONDS);
        spec["renewTime"] = now;
        record
    }

    /// With nobody.
    pub(super) fn released(&self, now: SystemTime) -> Record {
        let mut record = self.with_spec();
        if let Some(spec) = record.0["spec"].as_object_mut() {
            spec.remove("holderIdentity");
            spec.insert(
                "renewTime".to_owned(),
                json!(humantime::format_rfc3339_micros(now).to_string()),
            );
        }
        record
    }

    fn with_spec(&self) -> Record {
        let mut record = self.clone();
        if !record.0["spec"].is_object() {
            record.0["spec"] = json!({});
        }
        record
    }
}

/// Whose a Lease is.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Whoever asks may have it.
    Free,
    /// Another's.
    Held(String),
}

/// How long a Lease has been silent, by the clock of who looks at it: clocks of different nodes need not agree.
#[derive(Debug, Default)]
pub(super) struct Patience {
    seen: Option<(String, Instant)>,
}

impl Patience {
    /// Whether `me` may have it.
    pub(super) fn verdict(&mut self, record: &Record, me: &str, now: Instant) -> Verdict {
        let Some(holder) = record.holder().filter(|holder| *holder != me) else {
            return Verdict::Free;
        };
        match &self.seen {
            Some((version, since)) if version == record.version() => {
                if now.duration_since(*since) >= record.duration() {
                    return Verdict::Free;
                }
            }
            _ => self.seen = Some((record.version().to_owned(), now)),
        }
        Verdict::Held(holder.to_owned())
    }

    /// The cluster did not answer. Its holder could not renew it either, so what was seen before does not count.
    pub(super) fn gap(&mut self) {
        self.seen = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: &str, spec: Value) -> Record {
        let text =
            json!({ "metadata": { "name": "a", "resourceVersion": version, "labels": { "x": "y" } }, "spec": spec });
        Record::parse(&text.to_string()).unwrap()
    }

    #[test]
    fn a_silent_holder_loses_it_after_the_time_that_it_says_by_the_watchers_own_clock() {
        let begun = Instant::now();
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        // The moment in it is of another clock, years away.
        let silent = |version| {
            record(
                version,
                json!({ "holderIdentity": "b", "leaseDurationSeconds": 15, "renewTime": "1999-01-01T00:00:00.000000Z" }),
            )
        };
        let held = || Verdict::Held("b".to_owned());
        let mut patience = Patience::default();
        assert_eq!(patience.verdict(&silent("1"), "a", begun), held());
        assert_eq!(patience.verdict(&silent("1"), "a", after(14)), held());
        assert_eq!(patience.verdict(&silent("2"), "a", after(15)), held(), "it was renewed");
        assert_eq!(patience.verdict(&silent("2"), "a", after(29)), held());
        assert_eq!(patience.verdict(&silent("2"), "a", after(30)), Verdict::Free);
    }

    #[test]
    fn while_the_cluster_is_silent_no_holder_is() {
        let begun = Instant::now();
        let of_another = record("1", json!({ "holderIdentity": "b", "leaseDurationSeconds": 15 }));
        let mut patience = Patience::default();
        patience.verdict(&of_another, "a", begun);
        patience.gap();
        let later = begun + Duration::from_secs(600);
        assert_eq!(patience.verdict(&of_another, "a", later), Verdict::Held("b".to_owned()));
        assert_eq!(
            patience.verdict(&of_another, "a", later + Duration::from_secs(15)),
            Verdict::Free
        );
    }

    #[test]
    fn it_is_free_where_nobody_has_it_and_for_the_same_pod_again() {
        let now = Instant::now();
        for spec in [
            Value::Null,
            json!({}),
            json!({ "holderIdentity": "" }),
            json!({ "holderIdentity": "a" }),
        ] {
            assert_eq!(Patience::default().verdict(&record("1", spec), "a", now), Verdict::Free);
        }
        assert_eq!(Record::parse("{}"), None);
        assert_eq!(Record::parse("<html>"), None);
    }

    #[test]
    fn what_is_written_keeps_what_others_wrote_and_counts_holders() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000);
        let empty = record("7", Value::Null);
        let first = empty.held("a", now);
        assert_eq!(
            first.0["spec"],
            json!({
                "holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 1,
                "acquireTime": "1970-01-01T00:00:01.500000Z", "renewTime": "1970-01-01T00:00:01.500000Z",
            })
        );
        assert_eq!(
            first.0["metadata"], empty.0["metadata"],
            "its version too, by which the cluster refuses the slower of two"
        );
        let again = first.held("a", now + Duration::from_secs(5));
        assert_eq!(again.0["spec"]["acquireTime"], first.0["spec"]["acquireTime"]);
        assert_eq!(
            (&again.0["spec"]["leaseTransitions"], &again.0["spec"]["renewTime"]),
            (&json!(1), &json!("1970-01-01T00:00:06.500000Z"))
        );
        let given_up = again.released(now);
        assert_eq!(given_up.holder(), None);
        assert_eq!(given_up.held("b", now).0["spec"]["leaseTransitions"], 2);
    }
}
