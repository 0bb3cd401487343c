//! kubectl, found on the path: everything that reaches a cluster goes through it, with its own idea of which cluster and
//! whose rights.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::ending::Ending;
use crate::k8s::settings::Settings;
use crate::sibling::found;

/// Overrides which kubectl is called.
const KUBECTL: &str = "LOCKSTEP_KUBECTL";

/// Brings the objects up to date.
pub(crate) fn apply(settings: &Settings, stream: &str) -> Result<(), Ending> {
    call(settings, &["apply", "-f", "-"], Some(stream))
}

/// Deletes the objects, and waits until they are gone.
pub(crate) fn delete(settings: &Settings, stream: &str) -> Result<(), Ending> {
    call(settings, &["delete", "--ignore-not-found", "-f", "-"], Some(stream))
}

/// Shows what every container of the run says, each line with the name of its pod.
pub(crate) fn logs(settings: &Settings, follow: bool) -> Result<(), Ending> {
    let selector = format!(
        "app.kubernetes.io/name=lockstep,app.kubernetes.io/instance={}",
        settings.name
    );
    // Pods that come later, in the place of others, want a stream too.
    let streams = format!("--max-log-requests={}", 2 * (settings.ranks + 2));
    let mut words = vec![
        "logs",
        "--selector",
        &selector,
        "--all-containers",
        "--prefix",
        "--tail=-1",
        "--ignore-errors",
    ];
    if follow {
        words.extend(["--follow", &streams]);
    }
    call(settings, &words, None)
}

/// Calls it with these words, and says what went wrong in its own.
fn call(settings: &Settings, words: &[&str], input: Option<&str>) -> Result<(), Ending> {
    let program = program()?;
    let failed = |error: std::io::Error| Ending::Failed(format!("cannot start {}: {error}", program.display()));
    let mut command = Command::new(&program);
    if let Some(namespace) = &settings.namespace {
        command.args(["--namespace", namespace]);
    }
    command.args(words);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(failed)?;
    let written = match (child.stdin.take(), input) {
        (Some(mut pipe), Some(text)) => pipe.write_all(text.as_bytes()),
        _ => Ok(()),
    };
    let status = child.wait().map_err(failed)?;
    let called = format!("`kubectl {}`", words[0]);
    match (status.success(), written) {
        (true, Ok(())) => Ok(()),
        (true, Err(error)) => Err(Ending::Failed(format!("{called} did not read all objects: {error}"))),
        (false, _) => Err(Ending::Failed(format!(
            "{called} failed ({status}); what it said stands above"
        ))),
    }
}

fn program() -> Result<PathBuf, Ending> {
    let name = std::env::var_os(KUBECTL).unwrap_or_else(|| OsString::from("kubectl"));
    found(&name).ok_or_else(|| {
        Ending::BadInput(format!(
            "the program {} is not there; install kubectl, or name it in {KUBECTL}. `lockstep k8s render` needs none: pass on what it \
             prints",
            name.display()
        ))
    })
}
