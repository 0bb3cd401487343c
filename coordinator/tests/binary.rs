//! The coordinator as a process: it prints its address, answers, stops on a signal, and refuses bad input.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;

use lockstep_data::{Options, TokenizerChoice, prepare};
use lockstep_proto::domain::{Header, RunStatus};
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use tempfile::tempdir;

/// Ends the process by its id when a test fails half-way.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn command(config: &Path, run_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-coordinator"));
    command
        .args(["--ranks", "2", "--listen", "127.0.0.1:0"])
        .arg("--config")
        .arg(config)
        .arg("--run-dir")
        .arg(run_dir);
    command
}

fn write_config(folder: &Path) -> std::path::PathBuf {
    let config = folder.join("config.toml");
    let data = folder.join("data");
    let text = format!(
        r#"
        [run]
        name = "binary"
        steps = 5
        [data]
        path = {:?}
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 2
        schedule = 8
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
        "#,
        data.display().to_string()
    );
    std::fs::write(&config, text).unwrap();
    config
}

/// A coordinator in `folder` that has printed its address, and the address.
fn started(folder: &std::path::Path) -> (Ended, String) {
    let (text, out) = (folder.join("text.txt"), folder.join("data"));
    std::fs::write(&text, "All the world's a stage. ".repeat(200)).unwrap();
    let options = Options {
        inputs: vec![text],
        out,
        tokenizer: TokenizerChoice::Byte,
    };
    prepare(&options, &AtomicBool::new(false)).unwrap();
    let config = write_config(folder);
    let mut process = command(&config, &folder.join("run"));
    let mut process = Ended(process.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut address = String::new();
    BufReader::new(process.0.stdout.take().unwrap())
        .read_line(&mut address)
        .unwrap();
    (process, address.trim().to_owned())
}

#[tokio::test]
async fn it_prints_its_address_answers_and_stops_on_a_signal() {
    let folder = tempdir().unwrap();
    let (mut process, address) = started(folder.path());

    let mut control = ControlClient::connect(address).await.unwrap();
    let header = Some((&Header::default()).into());
    let status = RunStatus::try_from(control.status(v1::StatusRequest { header }).await.unwrap().into_inner()).unwrap();
    assert_eq!(
        (status.phase.as_str(), status.header.stamp.term),
        ("waiting-for-members", 1)
    );

    let pid = rustix::process::Pid::from_raw(process.0.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(3), "stopped by an operator");
    assert!(folder.path().join("run/summary.json").exists());
}

#[test]
fn bad_input_is_one_sentence_and_exit_code_2() {
    let folder = tempdir().unwrap();
    let config = write_config(folder.path());
    let run_dir = folder.path().join("run");
    let output = command(&config, &run_dir).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("data"), "names the data folder that is missing: {said}");
    let output = command(&folder.path().join("nowhere.toml"), &run_dir).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("nowhere.toml"));
    assert!(!run_dir.exists());
}

#[test]
fn a_signal_right_after_the_address_stops_it_in_order() {
    let folder = tempdir().unwrap();
    let (mut process, _) = started(folder.path());
    let pid = rustix::process::Pid::from_raw(process.0.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(3), "stopped by an operator");
    assert!(folder.path().join("run/summary.json").exists());
}
