//! `lockstep k8s`: what is rendered, what is refused, and which key of a config shows where.
//!
//! - `golden`: the tree in the repository is what the program makes, and kustomize makes of it what `render` prints
//! - `policy`: what every manifest keeps to, and that each rule finds what breaks it
//! - `schemas`: the published schemas of Kubernetes and of the controllers' own kinds
//! - `kubectl`: what kubectl is called with
//! - `containers`: coordinator and trainers as real containers (`cargo xtask containers`)
//! - `health`: how a pod asks whether a coordinator serves
#![allow(clippy::unwrap_used)]

#[path = "../stage/mod.rs"]
mod stage;

mod containers;
mod golden;
mod health;
mod kubectl;
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

fn environment<'a>(container: &'a Value, name: &str) -> &'a Value {
    let mut variables = container["env"].as_array().unwrap().iter();
    &variables
        .find(|variable| variable["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {container:#}"))["value"]
}

#[test]
fn every_overlay_renders_with_and_without_gpu_and_tls_and_always_the_same() {
    let stage = Stage::new();
    let before = stage.listing();
    for variant in variants() {
        let text = rendered(&stage, &variant);
        assert_eq!(text, rendered(&stage, &variant), "{variant}");
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
        ("--overlay indexed-job -n 0 --tls", "-n"),
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
fn a_changed_key_shows_where_it_should() {
    let stage = Stage::new();
    let of = |words: &str| objects(&stage, &format!("--overlay indexed-job {words}"));
    let before = of("");
    let pod = |objects: &[Value], part: &str| find(objects, "Job", part)["spec"]["template"].clone();
    let memory = |objects: &[Value]| -> u64 {
        let text = trainer(objects)["resources"]["limits"]["memory"]
            .as_str()
            .unwrap()
            .to_owned();
        text.strip_suffix("Mi").unwrap().parse().unwrap()
    };
    let gib = |objects: &[Value]| -> u64 {
        let claim = find(objects, "PersistentVolumeClaim", "-shared");
        let text = claim["spec"]["resources"]["requests"]["storage"].as_str().unwrap();
        text.strip_suffix("Gi").unwrap().parse().unwrap()
    };

    let named = of("--set run.name=The.Second_1");
    for object in &named {
        let name = object["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("the-second-1-"), "{name}");
    }
    assert_eq!(
        environment(trainer(&named), "LOCKSTEP_RUN_DIR"),
        "/shared/runs/The.Second_1",
        "files keep the run's own name"
    );

    let threads = of("--set run.intra_op_threads=3");
    for name in ["OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
        assert_eq!(environment(trainer(&before), name), "1");
        assert_eq!(environment(trainer(&threads), name), "3");
    }
    assert_eq!(trainer(&threads)["resources"]["requests"]["cpu"], "3");
    assert_eq!(trainer(&threads)["resources"]["limits"]["cpu"], "4");

    let port = of("--set coordinator.bind=127.0.0.1:7123");
    let text = |value: &Value| value.to_string();
    assert_eq!(
        environment(trainer(&port), "LOCKSTEP_COORDINATOR"),
        "http://first-coordinator:7123"
    );
    assert!(text(&pod(&port, "-coordinator")).contains("0.0.0.0:7123"));
    assert!(text(&pod(&port, "-coordinator")).contains(r#""grpc":{"port":7124"#));
    assert_eq!(find(&port, "Service", "-coordinator")["spec"]["ports"][0]["port"], 7123);
    assert!(text(find(&port, "NetworkPolicy", "-coordinator")).contains("7123"));

    let restarts = of("--set fault.max_restarts=4");
    assert_eq!(find(&before, "Job", "-trainer")["spec"]["backoffLimit"], 10);
    assert_eq!(find(&restarts, "Job", "-trainer")["spec"]["backoffLimit"], 4);
    let grace = |objects: &[Value]| {
        pod(objects, "-trainer")["spec"]["terminationGracePeriodSeconds"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(
        grace(&before),
        60 + 30 + 1,
        "patience, leaving, one piece of a checkpoint"
    );
    assert_eq!(grace(&of("--set fault.patience_seconds=300")), 331);

    let large = of("--set model.width=2048 --set model.layers=24");
    assert!(memory(&large) > 4 * memory(&before) && grace(&large) > grace(&before) && gib(&large) > gib(&before));
    assert!(gib(&of("--set model.width=2048 --set checkpoint.keep_last=50")) > gib(&of("--set model.width=2048")));

    let three = of("-n 3");
    assert_eq!(find(&three, "Job", "-trainer")["spec"]["completions"], 3);
    assert_eq!(find(&three, "Job", "-trainer")["spec"]["parallelism"], 3);
    assert_eq!(
        find(&three, "PodDisruptionBudget", "-trainer")["spec"]["minAvailable"],
        2
    );
    let arguments = &pod(&three, "-coordinator")["spec"]["containers"][0]["args"];
    let arguments: Vec<&str> = arguments
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    assert!(
        arguments.windows(2).any(|pair| pair == ["--ranks", "3"]),
        "{arguments:?}"
    );

    let store = of("--set checkpoint.store=s3://bucket/first");
    assert_eq!(
        trainer(&store)["envFrom"],
        json!([{ "secretRef": { "name": "first-store" } }])
    );
    assert!(text(find(&store, "NetworkPolicy", "-trainer")).contains("443"));
    assert!(!text(find(&before, "NetworkPolicy", "-trainer")).contains("443"));
    let config = |objects: &[Value]| {
        find(objects, "ConfigMap", "-config")["data"]["run.toml"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(config(&store).contains("s3://bucket/first") && config(&before).contains("/shared/runs/first/checkpoints"));
    assert!(
        text(find(
            &of("--set telemetry.otlp=http://collector:4318"),
            "NetworkPolicy",
            "-trainer"
        ))
        .contains("4318")
    );

    let validation = of("--set data.validation=data");
    let mounts = text(&trainer(&validation)["volumeMounts"]);
    assert!(mounts.contains("/validation") && config(&validation).contains("/validation"));
    find(&validation, "PersistentVolumeClaim", "-validation");

    let device = of("--set run.device=cuda");
    assert_eq!(trainer(&device)["resources"]["limits"]["nvidia.com/gpu"], "1");
    assert_eq!(environment(trainer(&device), "CUBLAS_WORKSPACE_CONFIG"), ":4096:8");

    let rate = of("--set learning_rate.schedule=0.5");
    let annotation = |objects: &[Value]| pod(objects, "-trainer")["metadata"]["annotations"].clone();
    assert!(
        config(&rate) != config(&before) && annotation(&rate) != annotation(&before),
        "pods are made anew"
    );

    let tokens = objects(&stage, "--overlay indexed-job --tls --set security.tokens=tokens");
    assert!(text(&pod(&tokens, "-coordinator")).contains("/etc/lockstep/secret/tokens"));
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
