//! Starting other programs: what is started is printed, and a failure becomes one sentence.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;

/// Runs `command` with the terminal as its own; `what` names it in the sentence of a failure.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<(), Failure> {
    println!("$ {}", shown(command));
    let status = command.status().map_err(|error| not_started(what, command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::work(format!(
        "{what} ended with {status}; the lines above say why"
    )))
}

/// Runs `command` and returns its standard output as text; standard error goes to the terminal.
pub(crate) fn text_of(what: &str, command: &mut Command) -> Result<String, Failure> {
    let output = captured(what, command.stderr(Stdio::inherit()))?;
    if !output.status.success() {
        return Err(Failure::work(format!(
            "{what} ended with {}; the lines above say why",
            output.status
        )));
    }
    String::from_utf8(output.stdout).map_err(|_| Failure::work(format!("{what} printed something that is not UTF-8")))
}

/// Runs `command` to its end, whatever it is, and keeps what it printed to the streams that were not redirected.
pub(crate) fn captured(what: &str, command: &mut Command) -> Result<Output, Failure> {
    command
        .stdout(Stdio::piped())
        .output()
        .map_err(|error| not_started(what, command, &error))
}

fn not_started(what: &str, command: &Command, error: &std::io::Error) -> Failure {
    let program = command.get_program().to_string_lossy();
    Failure::work(match error.kind() {
        std::io::ErrorKind::NotFound => format!("{what} needs the program {program}, which was not found"),
        _ => format!("{what} could not start {program}: {error}"),
    })
}

fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    let mut line = name.into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let quoted = argument.is_empty() || argument.contains(|c: char| c.is_whitespace() || "'\"$&;|<>*".contains(c));
        line.push(' ');
        line.push_str(&if quoted {
            format!("'{argument}'")
        } else {
            argument.into_owned()
        });
    }
    line
}

/// Ctrl-C reaches every program of the terminal at once. While a child that answers it in its own way is running,
/// xtask must stay and wait for it; at any other time xtask ends as usual.
pub(crate) struct Interrupts {
    end_xtask: Arc<AtomicBool>,
    raised: Arc<AtomicBool>,
}

impl Interrupts {
    pub(crate) fn watch() -> Result<Interrupts, Failure> {
        let (end_xtask, raised) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&end_xtask))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&raised)))
                .map_err(|error| Failure::work(format!("signals cannot be watched: {error}")))?;
        }
        Ok(Interrupts { end_xtask, raised })
    }

    /// Whether there was an interruption that xtask outlived.
    pub(crate) fn raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Runs `work`, whose child decides what an interruption means.
    pub(crate) fn left_to_child<T>(&self, work: impl FnOnce() -> T) -> T {
        self.end_xtask.store(false, Ordering::SeqCst);
        let result = work();
        self.end_xtask.store(true, Ordering::SeqCst);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_named_with_its_status() {
        let failure = run("the check", Command::new("sh").args(["-c", "exit 7"]))
            .unwrap_err()
            .to_string();
        assert!(failure.contains("the check") && failure.contains('7'), "{failure}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let failure = run("the check", &mut Command::new("no-such-program-here"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            failure,
            "the check needs the program no-such-program-here, which was not found"
        );
    }

    #[test]
    fn a_printed_command_can_be_typed_again() {
        let mut command = Command::new("/some/where/lockstep");
        command.args(["generate", "runs/a/final", "--prompt", "To be or"]);
        assert_eq!(shown(&command), "lockstep generate runs/a/final --prompt 'To be or'");
    }
}
