//! A coordinator that holds a Lease: the next one waits for it, who has lost it ends, and a cluster that does not answer takes
//! it away from nobody.
#![allow(clippy::unwrap_used)]

mod cluster;
#[path = "../process/mod.rs"]
mod process;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster::Cluster;
use lockstep_proto::domain::{Header, RunStatus};
use lockstep_proto::v1;
use lockstep_proto::v1::control_client::ControlClient;
use process::{Ended, command, health, prepared, terminated};
use serde_json::json;
use tempfile::tempdir;
use tonic_health::pb::health_check_response::ServingStatus;

const LEASE: &str = "binary-coordinator";
/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A coordinator of `folder` in a pod of this name.
fn of_pod(folder: &Path, cluster: &Cluster, pod: &str) -> Command {
    let mut command = command(&folder.join("config.toml"), &folder.join("run"));
    cluster.let_in(&mut command);
    command.args(["--lease", LEASE, "--lease-holder", pod, "--on-sigterm", "leave"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn spawned(command: &mut Command) -> Ended {
    Ended(command.spawn().unwrap())
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn term(address: String) -> u64 {
    let mut control = ControlClient::connect(address).await.unwrap();
    let header = Some((&Header::default()).into());
    let status = control.status(v1::StatusRequest { header }).await.unwrap().into_inner();
    RunStatus::try_from(status).unwrap().header.stamp.term
}

#[tokio::test]
async fn the_second_waits_until_the_first_has_left_and_goes_on_in_the_next_term() {
    let folder = tempdir().unwrap();
    prepared(folder.path());
    let cluster = Cluster::start(folder.path(), LEASE);
    let mut first = spawned(&mut of_pod(folder.path(), &cluster, "pod-a"));
    assert_eq!(term(first.address()).await, 1);
    assert_eq!(cluster.holder().as_deref(), Some("pod-a"));

    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let mut second = spawned(of_pod(folder.path(), &cluster, "pod-b").args(["--health", &free]));
    let seen = cluster.calls().len();
    wait_until("the second asks twice", || {
        cluster.calls()[seen..]
            .iter()
            .filter(|call| call.starts_with("GET"))
            .count()
            >= 2
    });
    let health_at = format!("http://{free}");
    assert_eq!(
        health(&health_at, "").await,
        ServingStatus::Serving,
        "a pod that waits is alive"
    );
    assert_eq!(
        health(&health_at, "lockstep.v1.Training").await,
        ServingStatus::NotServing
    );
    assert_eq!(cluster.holder().as_deref(), Some("pod-a"));

    assert_eq!(terminated(&mut first), Some(1));
    assert_eq!(term(second.address()).await, 2, "the next term of the same run");
    assert_eq!(cluster.holder().as_deref(), Some("pod-b"));
    assert_eq!(cluster.spec()["leaseTransitions"], 2);
    assert_eq!(terminated(&mut second), Some(1));
    assert_eq!(cluster.holder(), None, "given up");
}

#[tokio::test]
async fn that_of_a_killed_one_runs_out_and_the_same_pod_has_it_again_at_once() {
    let folder = tempdir().unwrap();
    prepared(folder.path());
    let cluster = Cluster::start(folder.path(), LEASE);
    let mut first = spawned(&mut of_pod(folder.path(), &cluster, "pod-a"));
    first.address();
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let mut again = spawned(&mut of_pod(folder.path(), &cluster, "pod-a"));
    assert_eq!(term(again.address()).await, 2);
    again.0.kill().unwrap();
    again.0.wait().unwrap();
    assert_eq!(cluster.holder().as_deref(), Some("pod-a"), "nobody has given it up");
    // As if the other had said that he may be silent for so long.
    cluster.edit("leaseDurationSeconds", json!(3));
    let mut other = spawned(&mut of_pod(folder.path(), &cluster, "pod-b"));
    assert_eq!(term(other.address()).await, 3);
    assert_eq!(cluster.holder().as_deref(), Some("pod-b"));
}

#[test]
fn who_reads_that_another_has_it_ends() {
    let folder = tempdir().unwrap();
    prepared(folder.path());
    let cluster = Cluster::start(folder.path(), LEASE);
    let mut process = spawned(of_pod(folder.path(), &cluster, "pod-a").stderr(Stdio::piped()));
    process.address();
    cluster.edit("holderIdentity", json!("pod-b"));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut process.0.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("pod-b has the Lease now"), "{said}");
    assert_eq!(cluster.holder().as_deref(), Some("pod-b"), "it is not taken back");
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_takes_it_from_nobody() {
    let folder = tempdir().unwrap();
    prepared(folder.path());
    let cluster = Cluster::start(folder.path(), LEASE);
    let mut process = spawned(&mut of_pod(folder.path(), &cluster, "pod-a"));
    let address = process.address();
    cluster.be_silent(true);
    wait_until("two renewals fail", || {
        cluster.calls().iter().filter(|call| *call == "nothing").count() >= 2
    });
    assert_eq!(term(address.clone()).await, 1, "it serves on");
    let before = cluster.spec();
    cluster.be_silent(false);
    wait_until("it is renewed", || cluster.spec()["renewTime"] != before["renewTime"]);
    assert_eq!(term(address).await, 1);
    assert_eq!(
        (cluster.holder().as_deref(), &cluster.spec()["leaseTransitions"]),
        (Some("pod-a"), &json!(1))
    );
}

#[test]
fn what_is_missing_is_said_with_the_code_that_fits() {
    let folder = tempdir().unwrap();
    prepared(folder.path());
    let cluster = Cluster::start(folder.path(), LEASE);
    let said = |command: &mut Command| {
        let output = command.stderr(Stdio::piped()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let new = || of_pod(folder.path(), &cluster, "pod-a");
    let (code, text) = said(new().env_remove("KUBERNETES_SERVICE_HOST"));
    assert!(code == 2 && text.contains("KUBERNETES_SERVICE_HOST"), "{code} {text}");
    let (code, text) = said(new().args(["--lease-account", "nowhere"]));
    assert!(code == 2 && text.contains("nowhere"), "{code} {text}");
    // These may pass: objects that are just being made are not all there yet.
    std::fs::write(cluster.account.join("token"), "another").unwrap();
    let (code, text) = said(&mut new());
    assert!(
        code == 1 && text.contains("Unauthorized") && text.contains("Role"),
        "{code} {text}"
    );
    std::fs::write(cluster.account.join("token"), "the-pods-own-token\n").unwrap();
    cluster.delete();
    let (code, text) = said(&mut new());
    assert!(code == 1 && text.contains(LEASE), "{code} {text}");
    assert!(!folder.path().join("run").exists(), "the run is not touched before");
}
