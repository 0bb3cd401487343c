//! `lockstep health`, as probes and waiting pods ask: in clear, over TLS without a certificate of their own, and before
//! anybody serves.

use serde_json::Value;

use crate::stage::{Running, Stage, said, wait_until};

/// A run whose trainers never come, and its address.
fn waiting_run(stage: &Stage, words: &str) -> (Running, String) {
    let trainer = stage.stand_in("exec sleep 600");
    let mut command = stage.command(&format!("run run.toml -n 2 {words}"));
    let mut run = stage.start(command.env("LOCKSTEP_TRAINER", &trainer));
    wait_until("the run has an address", || {
        stage.path("runs/first/coordinator.json").is_file() || !run.is_running()
    });
    assert!(run.is_running(), "{}", run.err());
    let address: Value = serde_json::from_str(&stage.read("runs/first/coordinator.json")).unwrap();
    (run, address["url"].as_str().unwrap().to_owned())
}

#[test]
fn a_coordinator_that_serves_is_healthy() {
    let stage = Stage::new();
    let (run, address) = waiting_run(&stage, "");
    let output = stage.lockstep(&format!("health --coordinator {address}"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let output = stage
        .command("health")
        .env("LOCKSTEP_COORDINATOR", &address)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    drop(run);
}

#[test]
fn over_tls_the_authority_is_needed_and_no_certificate_of_ones_own() {
    let stage = Stage::new();
    let made = stage.lockstep("certs new --out keys");
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    let words = "--set security.certificate=keys/server.pem --set security.key=keys/server.key --set security.client_ca=keys/ca.pem";
    let (run, address) = waiting_run(&stage, words);
    let named = address.replace("127.0.0.1", "localhost");
    let output = stage.lockstep(&format!("health --coordinator {named} --ca keys/ca.pem"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let output = stage.lockstep(&format!("health --coordinator {named}"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("LOCKSTEP_CA"), "{}", said(&output));
    drop(run);
}

#[test]
fn nobody_there_is_no_health_and_who_waits_sees_it_come() {
    let stage = Stage::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let output = stage.lockstep(&format!("health --coordinator http://{free}"));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("no coordinator answers"), "{}", said(&output));
    let mut waits = stage.start(&mut stage.command(&format!("health --coordinator http://{free} --wait 60")));
    let (run, _) = waiting_run(&stage, &format!("--set coordinator.bind={free}"));
    assert_eq!(waits.wait(), 0, "{}", waits.err());
    drop(run);
}
