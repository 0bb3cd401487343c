//! What kubectl is called with, by a stand-in that keeps what it gets.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use super::{documents, rendered};
use crate::stage::{Stage, said};

/// A stage whose `kubectl` keeps its words in `words` and what it reads in `input`, and ends with the exit code in `code`.
fn with_kubectl() -> Stage {
    let stage = Stage::new();
    let folder = stage.path("bin");
    fs::create_dir(&folder).unwrap();
    let script = "#!/bin/sh\nfor word; do echo \"$word\"; done > words\ncat > input\nexit \"$(cat code)\"\n";
    let program = folder.join("kubectl");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(stage.path("code"), "0").unwrap();
    stage
}

fn call(stage: &Stage, words: &str) -> Output {
    let path = format!("{}:/usr/bin:/bin", stage.path("bin").display());
    stage
        .command(words)
        .env("PATH", path)
        .env_remove("LOCKSTEP_KUBECTL")
        .output()
        .unwrap()
}

fn words(stage: &Stage) -> Vec<String> {
    stage.read("words").lines().map(str::to_owned).collect()
}

#[test]
fn apply_hands_over_what_render_prints() {
    let stage = with_kubectl();
    let output = call(&stage, "k8s apply run.toml --overlay elastic --tls --namespace team");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(words(&stage), ["--namespace", "team", "apply", "-f", "-"]);
    assert_eq!(
        stage.read("input"),
        rendered(&stage, "--overlay elastic --tls --namespace team")
    );
}

#[test]
fn delete_keeps_the_volumes_unless_it_is_told() {
    let stage = with_kubectl();
    let kinds = || -> Vec<String> {
        let objects = documents(&stage.read("input"));
        objects
            .iter()
            .map(|object| object["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    let output = call(&stage, "k8s delete run.toml --overlay jobset --tls");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(words(&stage), ["delete", "--ignore-not-found", "-f", "-"]);
    assert!(kinds().iter().any(|kind| kind == "JobSet") && !kinds().iter().any(|kind| kind == "PersistentVolumeClaim"));
    let output = call(&stage, "k8s delete run.toml --overlay jobset --tls --volumes");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(kinds().iter().any(|kind| kind == "PersistentVolumeClaim"));
}

#[test]
fn logs_are_those_of_every_container_of_the_run() {
    let stage = with_kubectl();
    let output = call(&stage, "k8s logs run.toml --overlay indexed-job --tls -n 3 -f");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let words = words(&stage);
    for word in [
        "logs",
        "app.kubernetes.io/name=lockstep,app.kubernetes.io/instance=first",
        "--all-containers",
        "--prefix",
        "--follow",
        "--max-log-requests=10",
    ] {
        assert!(words.iter().any(|said| said == word), "{word} is missing in {words:?}");
    }
}

#[test]
fn a_kubectl_that_fails_or_is_not_there_is_said() {
    let stage = with_kubectl();
    fs::write(stage.path("code"), "7").unwrap();
    let output = call(&stage, "k8s apply run.toml --overlay indexed-job --tls");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("`kubectl apply` failed") && said(&output).contains('7'),
        "{}",
        said(&output)
    );

    fs::remove_file(stage.path("bin/kubectl")).unwrap();
    let mut command = stage.command("k8s apply run.toml --overlay indexed-job --tls");
    let output = command
        .env("PATH", stage.path("bin"))
        .env_remove("LOCKSTEP_KUBECTL")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("install kubectl"), "{}", said(&output));

    let output = stage
        .command("k8s logs run.toml --overlay indexed-job --tls")
        .env("LOCKSTEP_KUBECTL", "no-such-kubectl")
        .output();
    assert!(said(&output.unwrap()).contains("no-such-kubectl"));
}

#[test]
fn nothing_reaches_a_cluster_that_would_be_refused_here() {
    let stage = with_kubectl();
    for words in ["apply", "delete", "logs"] {
        let output = call(&stage, &format!("k8s {words} run.toml --overlay indexed-job"));
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(!stage.path("words").exists(), "{words} was handed over");
    }
}
