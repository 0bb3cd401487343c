//! The coordinator as a process: it prints its address, answers, stops on a signal, and refuses bad input.
#![allow(clippy::unwrap_used)]

mod process;

use std::path::Path;
use std::process::Stdio;

use lockstep_proto::domain::{Header, RunStatus};
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use process::{Ended, command, health, prepared, terminated, write_config};
use tempfile::tempdir;
use tonic_health::pb::health_check_response::ServingStatus;

/// A coordinator in `folder` that has printed its address, and the address.
fn started(folder: &std::path::Path) -> (Ended, String) {
    let config = prepared(folder);
    let mut process = command(&config, &folder.join("run"));
    let mut process = Ended(process.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let address = process.address();
    (process, address)
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

/// The coordinator of `folder` with these words more, its address, and where its health is.
fn in_pod(folder: &Path, words: &[&str]) -> (Ended, String, String) {
    // A port that a closed listener had is not given out at once.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let mut command = command(&folder.join("config.toml"), &folder.join("run"));
    command.args(["--health", &free]).args(words);
    let mut process = Ended(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let address = process.address();
    (process, address, format!("http://{free}"))
}

#[tokio::test]
async fn a_coordinator_that_leaves_on_sigterm_leaves_the_run_to_the_next_one() {
    let folder = tempdir().unwrap();
    let (mut first, _) = started(folder.path());
    assert_eq!(terminated(&mut first), Some(3), "a run is there");
    for term in [2, 3] {
        let (mut process, address, health_at) = in_pod(folder.path(), &["--on-sigterm", "leave"]);
        let mut control = ControlClient::connect(address).await.unwrap();
        let header = Some((&Header::default()).into());
        let status = control.status(v1::StatusRequest { header }).await.unwrap().into_inner();
        let status = RunStatus::try_from(status).unwrap();
        assert_eq!(status.header.stamp.term, term, "the next term of the same run");
        assert_eq!(health(&health_at, "").await, ServingStatus::Serving);
        assert_eq!(health(&health_at, "lockstep.v1.Training").await, ServingStatus::Serving);
        assert_eq!(
            terminated(&mut process),
            Some(1),
            "whoever keeps it alive starts it again"
        );
    }
}

#[tokio::test]
async fn a_coordinator_that_stays_is_alive_and_serves_nobody_when_the_run_is_over() {
    let folder = tempdir().unwrap();
    drop(started(folder.path()));
    let (mut process, address, health_at) = in_pod(folder.path(), &["--stay", "--on-sigterm", "leave"]);
    let mut control = ControlClient::connect(address).await.unwrap();
    let header = Some((&Header::default()).into());
    let stop = v1::StopRequest {
        header,
        ..v1::StopRequest::default()
    };
    control.stop(stop).await.unwrap();
    let begun = std::time::Instant::now();
    while health(&health_at, "lockstep.v1.Training").await == ServingStatus::Serving {
        assert!(begun.elapsed().as_secs() < 60, "the run does not end");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(health(&health_at, "").await, ServingStatus::Serving);
    assert!(process.0.try_wait().unwrap().is_none(), "it stays");
    assert_eq!(terminated(&mut process), Some(3), "how the run ended");
}

#[test]
fn health_at_an_address_that_is_taken_is_refused_before_anything_starts() {
    let folder = tempdir().unwrap();
    drop(started(folder.path()));
    std::fs::remove_dir_all(folder.path().join("run")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = command(&folder.path().join("config.toml"), &folder.path().join("run"));
    command.args(["--health", &taken.local_addr().unwrap().to_string()]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--health"));
    assert!(!folder.path().join("run").exists());
}
