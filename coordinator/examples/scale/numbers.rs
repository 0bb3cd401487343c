//! What was measured, as text.

use std::time::Duration;

/// A table in Markdown; the first column stands to the left.
pub(crate) fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<String> = (0..header.len())
        .map(|column| if column == 0 { "---" } else { "---:" }.to_owned())
        .collect();
    let rows = rows.iter().map(|row| line(row));
    [line(header), line(&rule)].into_iter().chain(rows).collect()
}

/// The value below which this share of the sorted times lies.
pub(crate) fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let at = (share * last as f64).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// In milliseconds.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

/// `median; 99 of 100; longest`, in milliseconds.
pub(crate) fn spread(times: &mut [Duration]) -> [String; 3] {
    times.sort_unstable();
    [0.5, 0.99, 1.0].map(|share| ms(quantile(times, share)))
}
