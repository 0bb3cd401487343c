//! Facts and findings together: as text, as one JSON object, as an exit code.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::finding::{Finding, Severity};

/// Everything that was looked at and found.
#[derive(Debug)]
pub struct Report {
    /// What was gathered, as it is printed for programs.
    pub facts: Value,
    /// Lines about it for people: a name and a value.
    pub lines: Vec<(String, String)>,
    /// What is not as it should be, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Sorts findings by how bad they are; the order of checks stays within.
    pub fn new(facts: Value, lines: Vec<(String, String)>, mut findings: Vec<Finding>) -> Report {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.id.severity()));
        Report { facts, lines, findings }
    }

    fn count(&self, severity: Severity) -> usize {
        let of_it = self.findings.iter().filter(|finding| finding.id.severity() == severity);
        of_it.count()
    }

    /// 1 if a run could not start; with `strict` for a warning too. Else 0.
    pub fn exit_code(&self, strict: bool) -> u8 {
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        u8::from(errors > 0 || (strict && warnings > 0))
    }

    /// One object: version, facts, findings, counts.
    pub fn to_json(&self) -> Value {
        let findings: Vec<Value> = self
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "id": finding.id.word(),
                    "severity": finding.id.severity(),
                    "where": finding.place,
                    "what": finding.what,
                    "why": finding.id.why(),
                    "do": finding.remedy,
                })
            })
            .collect();
        json!({
            "version": 1,
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
            "findings": findings,
            "facts": self.facts,
        })
    }

    /// For people: what was looked at, then each finding in four lines, then how many there are.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.lines {
            let _ = writeln!(text, "{name:<12} {value}");
        }
        for finding in &self.findings {
            let (id, severity) = (finding.id.word(), finding.id.severity().word());
            let _ = write!(text, "\n{severity}: {id} ({})\n", finding.place);
            let _ = writeln!(text, "  what  {}.", finding.what);
            let _ = writeln!(text, "  why   {}.", capital(finding.id.why()));
            let _ = writeln!(text, "  do    {}.", capital(&finding.remedy));
        }
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let _ = match (errors, warnings) {
            (0, 0) => writeln!(text, "\nnothing is wrong"),
            _ => writeln!(text, "\n{}, {}", counted(errors, "error"), counted(warnings, "warning")),
        };
        text
    }
}

fn counted(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn capital(sentence: &str) -> String {
    let mut characters = sentence.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Id;

    fn report(ids: &[Id]) -> Report {
        let findings = ids
            .iter()
            .map(|id| Finding::new(*id, "here", "it is broken", "mend it"));
        Report::new(
            json!({}),
            vec![("cores".to_owned(), "2".to_owned())],
            findings.collect(),
        )
    }

    #[test]
    fn scripts_are_told_errors_and_warnings_only_if_they_ask() {
        assert_eq!(report(&[]).exit_code(true), 0);
        let warning = report(&[Id::DiskSlow]);
        assert_eq!((warning.exit_code(false), warning.exit_code(true)), (0, 1));
        assert_eq!(report(&[Id::DiskSlow, Id::DiskFull]).exit_code(false), 1);
    }

    #[test]
    fn errors_come_first_and_each_says_what_why_and_what_to_do() {
        let report = report(&[Id::DiskSlow, Id::DiskFull]);
        let text = report.to_text();
        let places = [
            "cores",
            "error: disk-full (here)",
            "what  it is broken.",
            "do    Mend it.",
            "warning: disk-slow",
        ];
        let found: Vec<_> = places.iter().map(|part| text.find(part).unwrap()).collect();
        assert!(found.is_sorted(), "{text}");
        assert!(text.ends_with("\n1 error, 1 warning\n"), "{text}");
        let json = report.to_json();
        assert_eq!(json["findings"][0]["id"], "disk-full");
        assert_eq!((&json["errors"], &json["warnings"]), (&json!(1), &json!(1)));
        assert_eq!(json["findings"][1]["severity"], "warning");
    }
}
