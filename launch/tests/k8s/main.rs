//! `lockstep k8s`: what is rendered, and what is refused.
//!
//! - `golden`: the tree in the repository is what the program makes, and kustomize makes of it what `render` prints
//! - `policy`: what every manifest keeps to, and that each rule finds what breaks it
//! - `schemas`: the published schemas of Kubernetes and of the controllers' own kinds
//! - `keys`: which key of a config shows where
//! - `kinds`: the controllers' own kinds, also where their schemas are not at hand
//! - `kubectl`: what kubectl is called with
//! - `memory`: what a trainer asks for, beside what `lockstep plan` predicts
//! - `containers`: coordinator and trainers as real containers (`cargo xtask containers`)
//! - `health`: how a pod asks whether a coordinator serves
#![allow(clippy::unwrap_used)]

#[path = "../stage/mod.rs"]
mod stage;

mod containers;
mod golden;
mod health;
mod keys;
mod kinds;
mod kubectl;
mod memory;
mod policy;
mod schemas;

use serde_json::{Value, json};
use stage::{Stage, said};

pub(crate) const OVERLAYS: [&str; 5] = ["indexed-job", "elastic", "jobset", "mpijob", "trainjob"];
/// The consent that is needed without TLS.
pub(crate) const OPEN: &str = "--set security.insecure_bind=true";

/// Every overlay, with and without GPU and TLS.
pub(crate) fn variants() -> Vec<String> {
    let mut variants = Vec::new();
    for overlay in OVERLAYS {
        for gpu in ["", " --gpu"] {
            for tls in ["", " --tls"] {
                variants.push(format!("--overlay {overlay}{gpu}{tls}"));
            }
        }
    }
    variants
}

/// What `lockstep k8s render run.toml` prints.
pub(crate) fn rendered(stage: &Stage, words: &str) -> String {
    let consent = if words.contains("--tls") { "" } else { OPEN };
    let output = stage.lockstep(&format!("k8s render run.toml {words} {consent}"));
    assert_eq!(output.status.code(), Some(0), "{words}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The documents of a stream.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

pub(crate) fn objects(stage: &Stage, words: &str) -> Vec<Value> {
    documents(&rendered(stage, words))
}

/// An object by kind and the end of its name.
pub(crate) fn find<'a>(objects: &'a [Value], kind: &str, end: &str) -> &'a Value {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"].as_str().unwrap().ends_with(end);
    objects
        .iter()
        .find(is_it)
        .unwrap_or_else(|| panic!("no {kind} …{end} among {objects:#?}"))
}

/// Every value under a key, anywhere.
pub(crate) fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key));
            map.values().for_each(|value| under(value, key, found));
        }
        Value::Array(values) => values.iter().for_each(|value| under(value, key, found)),
        _ => {}
    }
}

/// The container of the trainer in these objects.
pub(crate) fn trainer(objects: &[Value]) -> &Value {
    let mut lists = Vec::new();
    objects
        .iter()
        .for_each(|object| under(object, "containers", &mut lists));
    let mut containers = lists.iter().flat_map(|list| list.as_array().unwrap());
    let is_trainer = |container: &&Value| {
        ["trainer", "node", "worker"]
            .map(Value::from)
            .contains(&container["name"])
    };
    containers.find(is_trainer).unwrap()
}

#[test]
fn every_overlay_renders_with_and_without_gpu_and_tls_and_always_the_same() {
    let stage = Stage::new();
    let before = stage.listing();
    for variant in variants() {
        let text = rendered(&stage, &variant);
        assert_eq!(text, rendered(&stage, &variant), "{variant}");
        assert!(!text.contains("{{"), "{variant}: Helm would take that for a template");
        let objects = documents(&text);
        assert!(objects.len() >= 9, "{variant}: {}", objects.len());
        for object in &objects {
            let name = object["metadata"]["name"].as_str().unwrap();
            assert!(name == "first" || name.starts_with("first-"), "{variant}: {name}");
            assert!(
                object["apiVersion"].is_string() && object["kind"].is_string(),
                "{variant}: {name}"
            );
        }
        assert_eq!(text.contains("nvidia.com/gpu"), variant.contains("--gpu"), "{variant}");
        assert_eq!(
            text.contains("https://first-coordinator"),
            variant.contains("--tls") && !variant.contains("mpijob")
        );
        assert_eq!(
            text.contains("security.certificate"),
            variant.contains("--tls"),
            "{variant}"
        );
        assert_eq!(
            text.contains("security.insecure_bind=true"),
            !variant.contains("--tls"),
            "{variant}"
        );
    }
    assert_eq!(stage.listing(), before, "render writes nothing");
}

#[test]
fn nothing_is_open_to_all_without_somebody_having_said_so() {
    let stage = Stage::new();
    for overlay in OVERLAYS {
        let output = stage.lockstep(&format!("k8s render run.toml --overlay {overlay}"));
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(output.stdout.is_empty());
        let said = said(&output);
        assert!(
            said.contains("--tls") && said.contains("security.insecure_bind=true"),
            "{said}"
        );
        let output = stage.lockstep(&format!("k8s render run.toml --overlay {overlay} {OPEN}"));
        let warning = String::from_utf8(output.stderr).unwrap();
        assert!(warning.contains("without TLS"), "{warning}");
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("# the coordinator talks without TLS")
        );
    }
}

#[test]
fn what_does_not_fit_is_one_sentence_and_exit_code_2() {
    let stage = Stage::new();
    for (words, part) in [
        ("--overlay indexed-job -n 5 --tls", "run.lanes, which is 4"),
        ("--overlay indexed-job -n 0 --tls", "--ranks"),
        ("--overlay indexed-job --tls --image lockstep", "latest"),
        ("--overlay indexed-job --tls --image lockstep:latest", "latest"),
        ("--overlay indexed-job --tls --namespace Team", "--namespace Team"),
        (
            "--overlay indexed-job --tls --set collective.backend=mpi",
            "--overlay mpijob",
        ),
        (
            "--overlay indexed-job --tls --gpu --set collective.backend=host",
            "NCCL",
        ),
        ("--overlay indexed-job --set security.tokens=tokens", "--tls"),
        ("--overlay indexed-job --tls --set data.path=nowhere", "model.vocab"),
        (
            "--overlay indexed-job --tls --set fault.min_ranks=3 -n 2",
            "fault.min_ranks",
        ),
        ("--overlay indexed-job --tls --set run.nmae=x", "run.name"),
        ("--overlay somewhere --tls", "indexed-job"),
    ] {
        let output = stage.lockstep(&format!("k8s render run.toml {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(output.stdout.is_empty(), "{words}");
        assert!(said(&output).contains(part), "{words}: {}", said(&output));
    }
    let elsewhere =
        stage.lockstep("k8s render run.toml --overlay jobset --tls --set data.path=nowhere --set model.vocab=300");
    assert_eq!(elsewhere.status.code(), Some(0), "{}", said(&elsewhere));
}

#[test]
fn a_coordinator_in_a_named_namespace_holds_a_lease_and_nobody_else_has_a_right() {
    let stage = Stage::new();
    let kinds = |objects: &[Value]| -> Vec<String> {
        let words = objects.iter().map(|object| object["kind"].as_str().unwrap().to_owned());
        words
            .filter(|kind| kind.starts_with("Role") || kind == "Lease")
            .collect()
    };
    for overlay in OVERLAYS {
        let without = objects(&stage, &format!("--overlay {overlay} --tls"));
        assert_eq!(
            kinds(&without),
            Vec::<String>::new(),
            "{overlay}: a right must name its namespace"
        );
        let with = objects(&stage, &format!("--overlay {overlay} --tls --namespace team"));
        let text = serde_json::to_string(&with).unwrap();
        if overlay == "mpijob" {
            assert_eq!(kinds(&with), Vec::<String>::new(), "its launcher is one by itself");
            continue;
        }
        assert_eq!(kinds(&with), ["Lease", "Role", "RoleBinding"], "{overlay}");
        assert_eq!(find(&with, "RoleBinding", "")["subjects"][0]["namespace"], "team");
        for part in [
            json!({ "name": "LOCKSTEP_LEASE", "value": "first-coordinator" }),
            json!({ "name": "LOCKSTEP_LEASE_HOLDER", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } }),
        ] {
            assert_eq!(
                text.matches(&part.to_string()).count(),
                1,
                "{overlay}: {part} is the coordinator's only"
            );
        }
        let egress = &find(&with, "NetworkPolicy", "-coordinator")["spec"]["egress"];
        let ways = |egress: &Value| egress.as_array().unwrap().len();
        let plain = &find(&without, "NetworkPolicy", "-coordinator")["spec"]["egress"];
        assert_eq!(ways(egress), ways(plain) + 1, "{overlay}: to the cluster's address");
    }
}

#[test]
fn the_config_in_the_cluster_is_one_that_the_coordinator_reads() {
    let stage = Stage::new();
    for overlay in ["indexed-job", "mpijob"] {
        for gpu in ["", " --gpu"] {
            let objects = objects(&stage, &format!("--overlay {overlay}{gpu}"));
            let text = find(&objects, "ConfigMap", "-config")["data"]["run.toml"]
                .as_str()
                .unwrap();
            let mut lists = Vec::new();
            objects.iter().for_each(|object| under(object, "args", &mut lists));
            let sets: Vec<String> = lists
                .iter()
                .filter_map(|list| list.as_array())
                .flat_map(|list| list.windows(2))
                .filter(|pair| pair[0] == "--set")
                .map(|pair| pair[1].as_str().unwrap().to_owned())
                .collect();
            assert!(!sets.is_empty());
            let config = lockstep_config::RunConfig::parse(text, "run.toml", &sets).unwrap();
            assert_eq!(config.run.device.word(), if gpu.is_empty() { "cpu" } else { "cuda" });
            assert!(config.security.insecure_bind);
        }
    }
}

#[test]
fn a_namespace_and_an_image_are_said_everywhere() {
    let stage = Stage::new();
    for overlay in OVERLAYS {
        let words = format!("--overlay {overlay} --tls --namespace team-1 --image r.example.org:5000/lockstep:7");
        let objects = objects(&stage, &words);
        let mut images = Vec::new();
        for object in &objects {
            assert_eq!(object["metadata"]["namespace"], "team-1", "{overlay}");
            under(object, "image", &mut images);
        }
        assert!(images.len() >= 2, "{overlay}");
        assert!(
            images.iter().all(|image| **image == "r.example.org:5000/lockstep:7"),
            "{overlay}: {images:?}"
        );
    }
}
