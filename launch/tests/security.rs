//! Certificates and tokens as people make and use them: `lockstep certs`, a run behind them, and the commands that may or may
//! not reach it. The last test trains with the real trainer.
#![allow(clippy::unwrap_used)]

mod stage;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use stage::{Running, Stage, real_trainer, said, wait_until};

const TLS: &str = "--set security.certificate=keys/server.pem --set security.key=keys/server.key";

fn with_certificates() -> Stage {
    let stage = Stage::new();
    let output = stage.lockstep("certs new --out keys --host example.org --days 3");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    stage
}

/// A token, kept in a file of its own.
fn token(stage: &Stage, role: &str) -> String {
    let output = stage.lockstep(&format!("certs token --role {role} --name a-{role} --tokens tokens"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    fs::write(stage.path(&format!("{role}.token")), &token).unwrap();
    token
}

/// A command with credentials in the environment, by the names of files in the folder.
fn with(stage: &Stage, words: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = stage.command(words);
    command.envs(environment.iter().map(|(name, file)| (*name, stage.path(file))));
    command.output().unwrap()
}

const CA: (&str, &str) = ("LOCKSTEP_CA", "keys/ca.pem");

fn certificate(role: &str) -> [(&'static str, &'static str); 3] {
    match role {
        "operator" => [
            CA,
            ("LOCKSTEP_CERT", "keys/operator.pem"),
            ("LOCKSTEP_KEY", "keys/operator.key"),
        ],
        "viewer" => [
            CA,
            ("LOCKSTEP_CERT", "keys/viewer.pem"),
            ("LOCKSTEP_KEY", "keys/viewer.key"),
        ],
        _ => [
            CA,
            ("LOCKSTEP_CERT", "keys/trainer.pem"),
            ("LOCKSTEP_KEY", "keys/trainer.key"),
        ],
    }
}

fn waiting_run(stage: &Stage, words: &str) -> Running {
    let trainer = stage.stand_in("exec sleep 600");
    let mut run = stage.start(
        stage
            .command(&format!("run run.toml -n 2 {words}"))
            .env("LOCKSTEP_TRAINER", &trainer),
    );
    wait_until("the trainers are there", || {
        stage.processes().len() == 3 || !run.is_running()
    });
    assert!(run.is_running(), "{}", run.err());
    run
}

#[test]
fn certificates_are_made_for_each_role_and_never_written_over() {
    let stage = with_certificates();
    for name in ["ca", "server", "trainer", "operator", "viewer"] {
        let mode = |end: &str| {
            fs::metadata(stage.path(&format!("keys/{name}.{end}")))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode("key"), mode("pem") & 0o022), (0o600, 0), "{name}");
        assert!(
            stage
                .read(&format!("keys/{name}.pem"))
                .starts_with("-----BEGIN CERTIFICATE-----")
        );
    }
    let before = stage.listing();
    let output = stage.lockstep("certs new --out keys");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("ca.pem is there already"), "{}", said(&output));
    assert_eq!(stage.listing(), before);
    for (words, part) in [
        ("certs new --out more --host bad_host!", "--host bad_host!"),
        ("certs new --out more --days 0", "--days"),
        (
            "certs token --role root --name a --tokens t",
            "trainer, operator or viewer",
        ),
        ("certs token --role viewer --name a/b --tokens t", "--name a/b"),
    ] {
        let output = stage.lockstep(words);
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(said(&output).contains(part), "{words}: {}", said(&output));
    }
    assert_eq!(stage.listing(), before);
}

#[test]
fn a_token_is_shown_once_and_kept_as_a_hash() {
    let stage = Stage::new();
    let (first, second) = (token(&stage, "viewer"), token(&stage, "viewer"));
    assert_ne!(first, second);
    let kept = stage.read("tokens");
    assert_eq!(kept.lines().count(), 2, "{kept}");
    assert!(!kept.contains(&first) && !kept.contains(&first[4..]));
    assert_eq!(
        fs::metadata(stage.path("tokens")).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn commands_reach_a_run_behind_client_certificates_by_their_role() {
    let stage = with_certificates();
    let run = waiting_run(&stage, &format!("{TLS} --set security.client_ca=keys/ca.pem"));
    let address = stage.read("runs/first/coordinator.json");
    assert!(address.contains("https://127.0.0.1:"), "{address}");
    for (words, role, code) in [
        ("status", "viewer", 0),
        ("members", "operator", 0),
        ("pause", "viewer", 2),
        ("status", "trainer", 2),
        ("pause", "trainer", 2),
        ("checkpoint", "viewer", 2),
    ] {
        let output = with(&stage, words, &certificate(role));
        assert_eq!(output.status.code(), Some(code), "{words} as {role}: {}", said(&output));
    }
    let output = with(&stage, "pause", &certificate("viewer"));
    assert!(said(&output).contains("needs the role operator"), "{}", said(&output));
    let output = stage.lockstep("status");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("LOCKSTEP_CA"), "{}", said(&output));
    let output = with(&stage, "status", &[CA]);
    assert_ne!(output.status.code(), Some(0), "{}", said(&output));
    let output = with(&stage, "stop", &certificate("operator"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    drop(run);
    let shown = said(&stage.lockstep("ledger show first"));
    for part in [
        "operator operator from 127.0.0.1:",
        "called /lockstep.v1.Control/Stop",
        "viewer viewer from",
        "refused",
    ] {
        assert!(shown.contains(part), "{part:?} is missing in:\n{shown}");
    }
}

#[test]
fn trainers_of_a_run_get_a_token_of_their_own_and_not_the_operators() {
    let stage = with_certificates();
    let operator = token(&stage, "operator");
    let trainer = stage.stand_in("env > environment-$LOCKSTEP_LOCAL_RANK; exec sleep 600");
    let mut run = stage.start(
        stage
            .command(&format!("run run.toml -n 1 {TLS} --set security.tokens=tokens"))
            .env("LOCKSTEP_TRAINER", &trainer)
            .env("LOCKSTEP_TOKEN", &operator)
            .env("LOCKSTEP_CERT", stage.path("keys/operator.pem"))
            .env("LOCKSTEP_KEY", stage.path("keys/operator.key")),
    );
    let mut environment = String::new();
    wait_until("the trainer has its environment", || {
        let files = fs::read_dir(stage.path("")).unwrap().flatten();
        let found = files
            .map(|entry| entry.path())
            .find(|path| path.display().to_string().contains("environment-"));
        environment = found.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        environment.contains("LOCKSTEP_TOKEN=") || !run.is_running()
    });
    let value = |name: &str| {
        environment
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}=")))
    };
    let own = value("LOCKSTEP_TOKEN").unwrap().to_owned();
    assert!(own.starts_with("lst_") && own != operator, "a token of its own");
    assert_eq!(
        (
            value("LOCKSTEP_CERT"),
            value("LOCKSTEP_KEY"),
            value("LOCKSTEP_TOKEN_FILE")
        ),
        (None, None, None)
    );
    assert!(
        value("LOCKSTEP_CA").unwrap().ends_with("keys/server.pem"),
        "{environment}"
    );
    fs::write(stage.path("own.token"), &own).unwrap();
    let output = with(&stage, "status", &[CA, ("LOCKSTEP_TOKEN_FILE", "own.token")]);
    assert_eq!(
        output.status.code(),
        Some(2),
        "a trainer's token is no operator's: {}",
        said(&output)
    );
    let output = with(&stage, "stop", &[CA, ("LOCKSTEP_TOKEN_FILE", "operator.token")]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    run.signal(rustix::process::Signal::INT);
    run.signal(rustix::process::Signal::INT);
    drop(run);
    for (path, content) in stage.listing() {
        let is_own = path.ends_with("own.token") || path.display().to_string().contains("environment-");
        let text = String::from_utf8_lossy(content.as_deref().unwrap_or_default()).into_owned();
        assert!(
            is_own || !text.contains(&own[4..]),
            "{} holds the trainers' token",
            path.display()
        );
        let is_operators = path.ends_with("operator.token");
        assert!(
            is_operators || !text.contains(&operator[4..]),
            "{} holds the operator's",
            path.display()
        );
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_before_anything_is_made() {
    let stage = with_certificates();
    fs::write(stage.path("tokens"), "viewer somebody").unwrap();
    let before = stage.listing();
    for (sets, parts) in [
        (
            "--set security.certificate=none.pem --set security.key=keys/server.key",
            ["none.pem", "security.certificate"],
        ),
        (
            "--set security.certificate=keys/server.pem --set security.key=keys/viewer.key",
            ["security.key", "a pair"],
        ),
        (
            "--set security.certificate=run.toml --set security.key=keys/server.key",
            ["security.certificate", "PEM"],
        ),
        ("--set security.tokens=tokens", ["line 1 of tokens", "three words"]),
    ] {
        let trainer = stage.path("text.txt");
        let mut command = stage.command(&format!("run run.toml -n 1 {sets}"));
        let output = command.env("LOCKSTEP_TRAINER", trainer).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{sets}: {}", said(&output));
        for part in parts {
            assert!(
                said(&output).contains(part),
                "{sets}: {part:?} is missing in: {}",
                said(&output)
            );
        }
        assert_eq!(stage.listing(), before, "{sets}");
    }
}

#[test]
fn a_run_trains_behind_certificates_and_tokens_with_the_same_bits() {
    let hash = |stage: &Stage, sets: &str| {
        let mut command = stage.command(&format!("run run.toml -n 2 {sets}"));
        let output = command.env("LOCKSTEP_TRAINER", real_trainer()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{sets}: {}", said(&output));
        let summary: serde_json::Value = serde_json::from_str(&stage.read("runs/first/summary.json")).unwrap();
        summary["parameter_hash"].as_str().unwrap().to_owned()
    };
    let mut hashes = Vec::new();
    for sets in [
        String::new(),
        format!("{TLS} --set security.client_ca=keys/ca.pem"),
        "--set security.tokens=tokens".to_owned(),
        format!("{TLS} --set security.tokens=tokens --set coordinator.bind=0.0.0.0:0"),
    ] {
        let stage = with_certificates();
        token(&stage, "operator");
        hashes.push(hash(&stage, &sets));
        let replay = stage.lockstep("ledger replay first");
        assert_eq!(replay.status.code(), Some(0), "{sets}: {}", said(&replay));
    }
    assert!(hashes.windows(2).all(|two| two[0] == two[1]), "{hashes:?}");
}
