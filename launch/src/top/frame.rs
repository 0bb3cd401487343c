//! One frame of `lockstep top`, which fits into 80 columns and 24 rows. Pure: an overview in, a picture out.

use std::time::{Duration, UNIX_EPOCH};

use lockstep_proto::domain::{CommittedStep, MemberStatus, Overview};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Gauge, Paragraph, Row, Sparkline, Table};

const KEYS: &str = "p pause   r resume   c checkpoint   s stop   q quit";
/// Rows of the table of members, at most, before the rest is only counted.
const MOST_MEMBERS: usize = 8;

/// Draws it; `note` is what the reader is told or asked.
pub(super) fn draw(frame: &mut Frame<'_>, overview: &Overview, note: &str) {
    let members = overview.members.len().clamp(1, MOST_MEMBERS) as u16 + 2;
    let raised: Vec<_> = overview.alerts.iter().filter(|alert| alert.until.is_none()).collect();
    let alerts = (raised.len().min(4) as u16) + u16::from(!raised.is_empty());
    let [head, figures, loss, table, alert_rows, decisions, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(2),
        Constraint::Min(5),
        Constraint::Length(members),
        Constraint::Length(alerts),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, overview);
    draw_figures(frame, figures, overview);
    draw_loss(frame, loss, overview);
    draw_members(frame, table, &overview.members);
    if !raised.is_empty() {
        let lines: Vec<Line<'_>> = raised
            .iter()
            .map(|alert| {
                let kind = Span::styled(format!("{} ", alert.kind), Style::new().fg(Color::Yellow).bold());
                Line::from(vec![kind, Span::raw(alert.sentence.clone())])
            })
            .collect();
        frame.render_widget(Paragraph::new(lines).block(titled("alerts")), alert_rows);
    }
    draw_decisions(frame, decisions, overview);
    let foot_text = if note.is_empty() { KEYS } else { note };
    let style = if note.is_empty() {
        Style::new().dim()
    } else {
        Style::new().bold()
    };
    frame.render_widget(Paragraph::new(foot_text).style(style), foot);
}

fn titled(title: &str) -> Block<'_> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(Style::new().dim())
        .title(format!(" {title} "))
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, overview: &Overview) {
    let status = &overview.status;
    let colour = match status.phase.as_str() {
        "training" => Color::Green,
        "failing" => Color::Red,
        _ => Color::Yellow,
    };
    let title = Line::from(vec![
        Span::styled(status.name.clone(), Modifier::BOLD),
        Span::raw("  "),
        Span::styled(status.phase.clone(), Style::new().fg(colour).bold()),
        Span::raw("  "),
        Span::styled(status.reason.clone(), Modifier::DIM),
    ]);
    let [first, bar, _] = Layout::vertical([Constraint::Length(1); 3]).areas(area);
    frame.render_widget(Paragraph::new(title), first);
    let share = match status.total_steps {
        0 => 0.0,
        total => (status.step as f64 / total as f64).clamp(0.0, 1.0),
    };
    let gauge = Gauge::default()
        .ratio(share)
        .label(format!("step {} of {}", status.step, status.total_steps))
        .gauge_style(Style::new().fg(Color::Blue));
    frame.render_widget(gauge, bar);
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, overview: &Overview) {
    let status = &overview.status;
    let last = overview.last.as_ref();
    let number =
        |value: Option<f64>, digits: usize| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
    let rate = last.map_or_else(
        || "-".to_owned(),
        |step| format!("{:.2e}", step.effective_learning_rate),
    );
    let rows = [
        [
            format!("loss {}", number(status.loss, 4)),
            format!("validation {}", number(status.validation_loss, 4)),
            format!("rate {rate}"),
            format!(
                "batch {}",
                last.map_or_else(|| "-".to_owned(), |step| step.batch.to_string())
            ),
        ],
        [
            format!("tok/s {}", number(status.tokens_per_second, 0)),
            format!("step {} ms", number(last.map(|step| step.step_ms), 0)),
            format!("ranks {} of {} here", status.ranks, status.members),
            format!("generation {}", status.header.stamp.generation),
        ],
    ];
    let columns = [Constraint::Ratio(1, 4); 4];
    frame.render_widget(Table::new(rows.map(Row::new), columns), area);
}

fn draw_loss(frame: &mut Frame<'_>, area: Rect, overview: &Overview) {
    let [curve, phases] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)])
        .spacing(2)
        .areas(area);
    let finite: Vec<f64> = overview
        .losses
        .iter()
        .copied()
        .filter(|loss| loss.is_finite())
        .collect();
    let least = finite.iter().copied().fold(f64::INFINITY, f64::min);
    let most = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let title = match finite.is_empty() {
        true => "loss".to_owned(),
        false => format!("loss, {least:.4} to {most:.4}"),
    };
    let block = titled(&title);
    let inside = block.inner(curve);
    let points = fitted(&overview.losses, usize::from(inside.width));
    // The smallest loss is seen too.
    let height = |loss: f64| match loss.is_finite() {
        true => Some(100 + ((loss - least) / (most - least).max(f64::MIN_POSITIVE) * 1000.0) as u64),
        false => None,
    };
    let bars: Vec<Option<u64>> = points.into_iter().map(height).collect();
    frame.render_widget(block, curve);
    frame.render_widget(
        Sparkline::default().data(bars).style(Style::new().fg(Color::Blue)),
        inside,
    );

    let rows = overview.last.as_ref().map(phase_rows).unwrap_or_default();
    let widths = [Constraint::Fill(1), Constraint::Length(9), Constraint::Length(5)];
    let table = Table::new(rows, widths).block(titled("step by phase, rank 0"));
    frame.render_widget(table, phases);
}

/// So many points of a longer list, each the mean of its neighbours; a shorter one as it is.
fn fitted(values: &[f64], points: usize) -> Vec<f64> {
    let width = values.len().div_ceil(points.max(1)).max(1);
    let mean = |values: &[f64]| {
        let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        finite.iter().sum::<f64>() / finite.len() as f64
    };
    values.chunks(width).map(mean).collect()
}

/// The longest phases first.
fn phase_rows(step: &CommittedStep) -> Vec<Row<'static>> {
    let mut phases: Vec<&(String, f64)> = step
        .phases
        .iter()
        .filter(|(name, _)| !name.starts_with("hidden_"))
        .collect();
    phases.sort_by(|one, other| other.1.total_cmp(&one.1));
    let row = |(name, ms): &&(String, f64)| {
        let share = if step.step_ms > 0.0 {
            ms / step.step_ms * 100.0
        } else {
            0.0
        };
        let name = name.strip_suffix("_ms").unwrap_or(name).to_owned();
        Row::new([name, format!("{ms:>6.1} ms"), format!("{share:>3.0} %")])
    };
    phases.iter().map(row).collect()
}

fn draw_members(frame: &mut Frame<'_>, area: Rect, members: &[MemberStatus]) {
    let row = |member: &MemberStatus| {
        let (rank, lanes) = match &member.place {
            Some((rank, lanes)) => (rank.to_string(), format!("{}..{}", lanes.start, lanes.end)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let now = match member.waits {
            true => format!("waits in {}", member.phase),
            false => member.phase.clone(),
        };
        let info = &member.info;
        Row::new([
            rank,
            info.member.clone(),
            info.pid.to_string(),
            info.host.clone(),
            lanes,
            member.reported_step.to_string(),
            now,
        ])
    };
    let widths = [
        Constraint::Length(4),
        Constraint::Fill(2),
        Constraint::Length(8),
        Constraint::Fill(2),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(20),
    ];
    let title = match members.len() {
        count if count > MOST_MEMBERS => format!("members, the first {MOST_MEMBERS} of {count}"),
        _ => "members".to_owned(),
    };
    let head = Row::new(["rank", "member", "pid", "host", "lanes", "step", "now"]).style(Style::new().dim());
    let table = Table::new(members.iter().take(MOST_MEMBERS).map(row), widths)
        .header(head)
        .block(titled(&title));
    frame.render_widget(table, area);
}

fn draw_decisions(frame: &mut Frame<'_>, area: Rect, overview: &Overview) {
    let newest_first = overview.decisions.iter().rev().map(|decision| {
        let at = Duration::try_from_secs_f64(decision.at).unwrap_or_default();
        let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + at).to_string();
        // The time of day, in UTC.
        let time = time.get(11..19).unwrap_or_default().to_owned();
        Line::from(vec![
            Span::styled(time + "Z ", Modifier::DIM),
            Span::raw(decision.reason.clone()),
        ])
    });
    let lines: Vec<Line<'_>> = newest_first.take(usize::from(area.height)).collect();
    frame.render_widget(Paragraph::new(lines).block(titled("decisions, newest first")), area);
}

#[cfg(test)]
mod tests {
    use lockstep_proto::domain::{Alert, Header, JoinInfo, PastDecision, RunStatus};

    use crate::top::plain;

    use super::*;

    fn overview() -> Overview {
        let member = |rank: u32| MemberStatus {
            info: JoinInfo {
                member: format!("rank-{rank}"),
                pid: 4000 + rank,
                host: "node-a".to_owned(),
                ..JoinInfo::default()
            },
            place: Some((rank, rank * 2..rank * 2 + 2)),
            reported_step: 120,
            phase: "backward".to_owned(),
            transports: Vec::new(),
            waits: rank == 1,
        };
        Overview {
            status: RunStatus {
                header: Header::default(),
                name: "shakespeare".to_owned(),
                phase: "training".to_owned(),
                reason: "step 121 of 1000".to_owned(),
                step: 120,
                total_steps: 1000,
                ranks: 2,
                members: 2,
                backend: "host".to_owned(),
                loss: Some(2.5),
                validation_loss: Some(2.625),
                tokens_per_second: Some(6400.0),
                transports: Vec::new(),
                skipped_steps: 0,
                last_skip: None,
                rewinds: 0,
                last_rewind: None,
                alerts: Vec::new(),
            },
            members: vec![member(0), member(1)],
            losses: (1..=120).map(|step| 2.0 + 2.0 / f64::from(step)).collect(),
            last: None,
            decisions: vec![PastDecision {
                at: 60.0,
                reason: "rank 1 was lost".to_owned(),
            }],
            alerts: vec![Alert {
                kind: "straggler".to_owned(),
                about: "rank 1".to_owned(),
                since: 50.0,
                until: None,
                sentence: "rank 1 is slower than its peers".to_owned(),
            }],
        }
    }

    #[test]
    fn everything_is_seen_in_eighty_columns_and_twenty_four_rows() {
        let text = plain(&overview(), 80, 24);
        for part in [
            "shakespeare",
            "training",
            "step 120 of 1000",
            "loss 2.5000",
            "validation 2.6250",
            "tok/s 6400",
            "rank-0",
            "4001",
            "2..4",
            "waits in backward",
            "straggler rank 1 is slower",
            "00:01:00Z rank 1 was lost",
            "p pause",
            "█",
            "loss, 2.0167 to 4.0000",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert_eq!(text.lines().count(), 24);
    }

    #[test]
    fn a_tiny_terminal_and_a_run_without_anything_are_drawn_too() {
        let mut nothing = overview();
        (nothing.members, nothing.losses, nothing.decisions, nothing.alerts) = Default::default();
        for (width, height) in [(1, 1), (10, 3), (80, 24), (300, 100)] {
            plain(&nothing, width, height);
            plain(&overview(), width, height);
        }
        let mut broken = overview();
        broken.losses = vec![f64::NAN; 5];
        plain(&broken, 80, 24);
    }
}
