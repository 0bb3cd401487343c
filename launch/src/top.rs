//! `lockstep top`: the page of a run in a terminal.
//!
//! Way of data: the coordinator is asked twice a second for an [`Overview`]; `frame` draws it; keys become orders. On a
//! terminal the screen is given back as it was, whatever happens.

mod frame;

use std::io::IsTerminal;
use std::time::Duration;

use lockstep_proto::domain::Overview;
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use lockstep_security::Channel;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal;
use ratatui::{DefaultTerminal, Terminal};

use crate::cli::TopArguments;
use crate::control::{block_on, connect, find, header, refusal};
use crate::ending::Ending;
use crate::orders::{Order, give};

/// How often the run is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The smallest terminal that shows everything.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// What a key means.
enum Wish {
    Order(Order),
    /// Ask whether the run shall really be stopped.
    AskToStop,
    Nothing,
    Quit,
}

/// Carries out `lockstep top`.
pub(crate) fn top(arguments: &TopArguments) -> Result<(), Ending> {
    let address = find(&arguments.target)?;
    if !arguments.once && !std::io::stdout().is_terminal() {
        return Err(Ending::BadInput(
            "`lockstep top` draws on a terminal, and this is none; `lockstep top --once` prints one frame, `lockstep watch` follows the run".to_owned(),
        ));
    }
    block_on(async {
        let mut client = connect(&address, &arguments.target).await?;
        if arguments.once {
            let overview = overview(&mut client, &address).await?;
            print!("{}", text(&overview));
            return Ok(());
        }
        // Looked at before the screen is taken, so that a refusal is read where it was asked for.
        let first = overview(&mut client, &address).await?;
        let mut terminal = ratatui::init();
        let ended = follow(&mut terminal, &mut client, &address, first).await;
        ratatui::restore();
        ended
    })
}

async fn overview(client: &mut ControlClient<Channel>, address: &str) -> Result<Overview, Ending> {
    let reply = client.overview(v1::OverviewRequest { header: header() }).await;
    let reply = reply.map_err(|status| refusal(address, &status))?;
    Overview::try_from(reply.into_inner()).map_err(Ending::failed)
}

async fn follow(
    terminal: &mut DefaultTerminal,
    client: &mut ControlClient<Channel>,
    address: &str,
    first: Overview,
) -> Result<(), Ending> {
    let mut shown = first;
    let mut note = String::new();
    let mut is_asking = false;
    loop {
        let said = if is_asking {
            "stop the run after this step? y / n"
        } else {
            &note
        };
        terminal
            .draw(|frame| frame::draw(frame, &shown, said))
            .map_err(Ending::failed)?;
        match wish(is_asking)? {
            Some(Wish::Quit) => return Ok(()),
            Some(Wish::AskToStop) => is_asking = true,
            Some(Wish::Nothing) => is_asking = false,
            Some(Wish::Order(order)) => {
                is_asking = false;
                note = match give(client, &order, &v1::Command::default()).await {
                    Ok(reply) => reply.into_inner().reason,
                    Err(status) => status.message().to_owned(),
                };
            }
            None => {}
        }
        shown = overview(client, address).await?;
    }
}

/// What the next key wants, if one comes before the next look.
fn wish(is_asking: bool) -> Result<Option<Wish>, Ending> {
    if !event::poll(LOOK).map_err(Ending::failed)? {
        return Ok(None);
    }
    Ok(match event::read().map_err(Ending::failed)? {
        Event::Key(key) if key.kind == KeyEventKind::Press => Some(meaning(key, is_asking)),
        _ => None,
    })
}

fn meaning(key: KeyEvent, is_asking: bool) -> Wish {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if is_control => Wish::Quit,
        KeyCode::Char('y') if is_asking => Wish::Order(Order::Stop { after_step: None }),
        _ if is_asking => Wish::Nothing,
        KeyCode::Char('q') | KeyCode::Esc => Wish::Quit,
        KeyCode::Char('p') => Wish::Order(Order::Pause),
        KeyCode::Char('r') => Wish::Order(Order::Resume),
        KeyCode::Char('c') => Wish::Order(Order::Checkpoint),
        KeyCode::Char('s') => Wish::AskToStop,
        _ => Wish::Nothing,
    }
}

/// One frame as plain text, as large as the terminal.
fn text(overview: &Overview) -> String {
    let is_terminal = std::io::stdout().is_terminal();
    let size = is_terminal.then(terminal::size).and_then(Result::ok);
    let (width, height) = size.unwrap_or(USUAL_SIZE);
    plain(overview, width, height)
}

fn plain(overview: &Overview, width: u16, height: u16) -> String {
    // Drawing into memory cannot fail.
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_drawn) = terminal.draw(|frame| frame::draw(frame, overview, ""));
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(width.max(1)));
    rows.map(|row| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned() + "\n"
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_stopped_only_by_two_keys() {
        let press = |code, is_asking| meaning(KeyEvent::new(code, KeyModifiers::NONE), is_asking);
        assert!(matches!(press(KeyCode::Char('s'), false), Wish::AskToStop));
        assert!(matches!(press(KeyCode::Char('y'), false), Wish::Nothing));
        assert!(matches!(
            press(KeyCode::Char('y'), true),
            Wish::Order(Order::Stop { after_step: None })
        ));
        for other in ['n', 's', 'q', 'p'] {
            assert!(matches!(press(KeyCode::Char(other), true), Wish::Nothing), "{other}");
        }
        assert!(matches!(press(KeyCode::Char('p'), false), Wish::Order(Order::Pause)));
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(matches!(meaning(control, true), Wish::Quit));
    }
}
