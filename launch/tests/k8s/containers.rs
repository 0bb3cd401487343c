//! The demo in real containers, started with what the manifests say: image, command, arguments, environment, user, read-only
//! root, mounts, limits. A container engine stands for the kubelet, this test for the controller of Jobs: it replaces what
//! ends, under another name, as the Job's own policy says; and a stand-in for the cluster's API keeps the coordinator's Lease.
//! Instead of a network of pods there is that of the machine.

#[path = "../../../coordinator/tests/lease/cluster.rs"]
mod api;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{documents, find};
use crate::stage::{Stage, real_trainer, said, wait_at_most};

/// Names the image, which `cargo xtask containers` makes.
const IMAGE: &str = "LOCKSTEP_K8S_IMAGE";
const STEPS: u64 = 150;
/// Where Kubernetes mounts the account of a pod.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Containers share the machine with whatever else runs.
const PATIENCE: Duration = Duration::from_secs(600);

fn docker(words: &[&str]) -> Output {
    Command::new("docker").args(words).output().unwrap()
}

fn docker_said(words: &[&str]) -> String {
    let output = docker(words);
    assert!(output.status.success(), "docker {words:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What stands for a cluster: folders for volumes and secrets, and the containers that were started.
struct Cluster<'a> {
    stage: &'a Stage,
    api: api::Cluster,
    objects: Vec<Value>,
    started: Vec<String>,
    /// Those that the test has ended.
    ended: Vec<String>,
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for name in &self.started {
            // It may be gone.
            let _ = docker(&["rm", "--force", name]);
        }
    }
}

impl Cluster<'_> {
    /// A folder that every user may write to, as a volume is for the group of its pod.
    fn folder(&self, kind: &str, name: &str) -> PathBuf {
        let path = self.stage.path(&format!("cluster/{kind}/{name}"));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        path
    }

    fn put(&self, kind: &str, name: &str, file: &str, content: &[u8]) {
        let path = self.folder(kind, name).join(file);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// What the engine is told of a volume that a container mounts.
    fn mount(&self, pod: &Value, mount: &Value) -> Vec<String> {
        let path = mount["mountPath"].as_str().unwrap();
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        if let Some(empty) = volume.get("emptyDir") {
            let size = text(&empty["sizeLimit"]).replace("Mi", "m");
            return match path {
                "/dev/shm" => vec!["--shm-size".to_owned(), size],
                _ => vec!["--tmpfs".to_owned(), format!("{path}:size={size},mode=1777")],
            };
        }
        let folder = match (
            volume.get("persistentVolumeClaim"),
            volume.get("configMap"),
            volume.get("secret"),
        ) {
            (Some(claim), _, _) => self.folder("claim", &text(&claim["claimName"])),
            (_, Some(map), _) => self.folder("map", &text(&map["name"])),
            (_, _, Some(secret)) => self.folder("secret", &text(&secret["secretName"])),
            _ => panic!("a volume of another kind: {volume}"),
        };
        let reads = if mount["readOnly"] == true { ":ro" } else { "" };
        vec!["--volume".to_owned(), format!("{}:{path}{reads}", folder.display())]
    }

    /// `docker run` for a container of a pod, by the words of its manifest.
    fn command(&self, pod: &Value, name: &str, container: &Value) -> Command {
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned();
        let (of_pod, own) = (&pod["spec"]["securityContext"], &container["securityContext"]);
        let mut command = Command::new("docker");
        command.args([
            "run",
            "--network",
            "host",
            "--add-host",
            "shakespeare-coordinator:127.0.0.1",
        ]);
        command.args(["--user", &format!("{}:{}", of_pod["runAsUser"], of_pod["runAsGroup"])]);
        assert_eq!(own["readOnlyRootFilesystem"], true);
        command.arg("--read-only");
        for capability in own["capabilities"]["drop"].as_array().unwrap() {
            command.args(["--cap-drop", &text(capability)]);
        }
        assert_eq!(own["allowPrivilegeEscalation"], false);
        command.args(["--security-opt", "no-new-privileges"]);
        let limits = &container["resources"]["limits"];
        let memory = text(&limits["memory"]).replace("Mi", "m");
        command.args([
            "--memory",
            &memory,
            "--memory-swap",
            &memory,
            "--cpus",
            &text(&limits["cpu"]),
        ]);
        command.args([
            "--stop-timeout",
            &pod["spec"]["terminationGracePeriodSeconds"].to_string(),
        ]);
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => name.to_owned(),
                Some("metadata.uid") => uid(name),
                Some("status.podIP") => "127.0.0.1".to_owned(),
                Some(other) => panic!("a field of another kind: {other}"),
                None => text(&variable["value"]),
            };
            command.args(["--env", &format!("{}={value}", text(&variable["name"]))]);
        }
        for (variable, value) in self.api.variables() {
            command.args(["--env", &format!("{variable}={value}")]);
        }
        if pod["spec"]["automountServiceAccountToken"] == true {
            command.args(["--volume", &format!("{}:{ACCOUNT}:ro", self.api.account.display())]);
        }
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            command.args(self.mount(pod, mount));
        }
        let program = container["command"].as_array().unwrap();
        command.args(["--entrypoint", &text(&program[0])]);
        command
    }

    /// Starts a pod: first what it begins with, to the end, then its container.
    fn start(&mut self, pod: &Value, name: &str) {
        for first in pod["spec"]["initContainers"].as_array().into_iter().flatten() {
            let mut command = self.command(pod, name, first);
            let output = command.arg("--rm").args(words(first)).output().unwrap();
            assert!(output.status.success(), "{name}: {}", said(&output));
        }
        let container = &pod["spec"]["containers"][0];
        let mut command = self.command(pod, name, container);
        command.args(["--detach", "--name", name]).args(words(container));
        self.started.push(name.to_owned());
        let output = command.stdout(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{name}: {}", said(&output));
    }

    fn template(&self, part: &str) -> Value {
        find(&self.objects, "Job", part)["spec"]["template"].clone()
    }

    /// What the Job's policy makes of an exit code.
    fn action(&self, part: &str, code: i64) -> String {
        let rules = find(&self.objects, "Job", part)["spec"]["podFailurePolicy"]["rules"]
            .as_array()
            .unwrap()
            .clone();
        let fits = |rule: &&Value| {
            rule["onExitCodes"]["values"]
                .as_array()
                .is_some_and(|codes| codes.contains(&code.into()))
        };
        rules
            .iter()
            .find(fits)
            .map_or("Count".to_owned(), |rule| rule["action"].as_str().unwrap().to_owned())
    }

    /// Steps that are committed.
    fn steps(&self) -> u64 {
        let file = self
            .folder("claim", "shakespeare-ledger")
            .join("runs/shakespeare/metrics.jsonl");
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter_map(|line| {
                line["parameter_hash"]
                    .is_string()
                    .then(|| line["step"].as_u64().unwrap())
            })
            .max()
            .unwrap_or(0)
    }

    fn reach(&self, step: u64) {
        wait_at_most(PATIENCE, &format!("step {step} is committed"), &mut || {
            for name in &self.started {
                assert!(
                    self.ended.contains(name) || exit_code(name).is_none(),
                    "{name} has ended by itself with {:?}\n{}",
                    exit_code(name),
                    logs(name)
                );
            }
            self.steps() >= step
        });
    }
}

/// What follows the image: the rest of the command, and the arguments.
fn words(container: &Value) -> Vec<String> {
    let list = |key: &str| container[key].as_array().cloned().unwrap_or_default();
    let rest = list("command").into_iter().skip(1).chain(list("args"));
    let image = container["image"].clone();
    std::iter::once(image)
        .chain(rest)
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

/// What Kubernetes would make up for a pod: another one for each.
fn uid(pod: &str) -> String {
    format!("uid-of-{pod}")
}

/// The exit code of a container that has ended.
fn exit_code(name: &str) -> Option<i64> {
    let state = docker_said(&["inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", name]);
    let (running, code) = state.split_once(' ').unwrap();
    (running == "false").then(|| code.parse().unwrap())
}

fn logs(name: &str) -> String {
    said(&docker(&["logs", "--tail", "20", name]))
}

fn hash(summary: &Path) -> String {
    let summary: Value = serde_json::from_str(&fs::read_to_string(summary).unwrap()).unwrap();
    assert_eq!(summary["steps"], STEPS, "{summary}");
    summary["parameter_hash"].as_str().unwrap().to_owned()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
#[ignore = "needs a container engine and an image: `cargo xtask containers` makes one and runs this"]
fn the_demo_in_containers_through_a_kill_and_a_handover_has_the_bits_of_lockstep_run() {
    let image =
        std::env::var(IMAGE).unwrap_or_else(|_| panic!("{IMAGE} names no image; `cargo xtask containers` makes one"));
    real_trainer();
    let stage = Stage::new();
    fs::copy(repository().join("examples/shakespeare.toml"), stage.path("demo.toml")).unwrap();
    let text = repository().join("examples/data/tinyshakespeare.txt");
    let prepared = stage.lockstep(&format!(
        "data prepare --tokenizer byte --out demo/data {}",
        text.display()
    ));
    assert_eq!(prepared.status.code(), Some(0), "{}", said(&prepared));
    let sets = format!("--set run.steps={STEPS} --set checkpoint.every=40 --set fault.patience_seconds=120");
    let alone = stage.lockstep(&format!("run demo.toml -n 2 {sets}"));
    assert_eq!(alone.status.code(), Some(0), "{}", said(&alone));
    let expected = hash(&stage.path("runs/shakespeare/summary.json"));

    // Two ports that nobody has: the second is that of health.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let made = stage.lockstep("certs new --out keys --host shakespeare-coordinator");
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    let render = format!(
        "k8s render demo.toml --overlay indexed-job --tls --namespace team -n 3 --image {image} \
         --set coordinator.bind={free} {sets}"
    );
    let rendered = stage.lockstep(&render);
    assert_eq!(rendered.status.code(), Some(0), "{}", said(&rendered));
    let objects = documents(&String::from_utf8(rendered.stdout).unwrap());
    let config = find(&objects, "ConfigMap", "-config")["data"]["run.toml"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut cluster = Cluster {
        stage: &stage,
        api: api::Cluster::start(&stage.path("cluster"), "shakespeare-coordinator"),
        objects,
        started: Vec::new(),
        ended: Vec::new(),
    };
    cluster.put("map", "shakespeare-config", "run.toml", config.as_bytes());
    for (part, file) in [("coordinator", "server"), ("trainer", "trainer")] {
        let secret = format!("shakespeare-{part}");
        for (key, from) in [
            ("tls.crt", format!("{file}.pem")),
            ("tls.key", format!("{file}.key")),
            ("ca.crt", "ca.pem".to_owned()),
        ] {
            cluster.put(
                "secret",
                &secret,
                key,
                &fs::read(stage.path(&format!("keys/{from}"))).unwrap(),
            );
        }
    }
    for entry in fs::read_dir(stage.path("demo/data")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        cluster.put("claim", "shakespeare-data", &name, &fs::read(entry.path()).unwrap());
    }

    let (coordinator, trainer) = (cluster.template("-coordinator"), cluster.template("-trainer"));
    cluster.start(&coordinator, "shakespeare-coordinator-aaaaa");
    for rank in 0..3 {
        cluster.start(&trainer, &format!("shakespeare-trainer-{rank}-aaaaa"));
    }
    assert_eq!(cluster.api.holder(), Some(uid("shakespeare-coordinator-aaaaa")));
    // A trainer is killed, as its node's kernel would for want of memory, and the Job replaces it.
    cluster.reach(30);
    cluster.ended.push("shakespeare-trainer-1-aaaaa".to_owned());
    docker_said(&["kill", "shakespeare-trainer-1-aaaaa"]);
    assert_eq!(exit_code("shakespeare-trainer-1-aaaaa"), Some(137));
    assert_eq!(cluster.action("-trainer", 137), "Count");
    cluster.start(&trainer, "shakespeare-trainer-1-bbbbb");
    // The coordinator's pod has to leave; another one takes the run over.
    cluster.reach(70);
    cluster.ended.push("shakespeare-coordinator-aaaaa".to_owned());
    docker_said(&["stop", "shakespeare-coordinator-aaaaa"]);
    let code = exit_code("shakespeare-coordinator-aaaaa").unwrap();
    assert_eq!(
        cluster.action("-coordinator", code),
        "Count",
        "exit code {code}: {}",
        logs("shakespeare-coordinator-aaaaa")
    );
    assert_eq!(cluster.api.holder(), None, "it has given up its Lease");
    cluster.start(&coordinator, "shakespeare-coordinator-bbbbb");

    let last = [
        "coordinator-bbbbb",
        "trainer-0-aaaaa",
        "trainer-1-bbbbb",
        "trainer-2-aaaaa",
    ]
    .map(|end| format!("shakespeare-{end}"));
    wait_at_most(PATIENCE, "all have ended", &mut || {
        last.iter().all(|name| exit_code(name).is_some())
    });
    for name in &last {
        assert_eq!(exit_code(name), Some(0), "{name}: {}", logs(name));
    }
    let ledger = cluster.folder("claim", "shakespeare-ledger").join("runs/shakespeare");
    assert_eq!(hash(&ledger.join("summary.json")), expected, "other bits");
    let shared = cluster.folder("claim", "shakespeare-shared").join("runs/shakespeare");
    assert!(
        shared.join("final/weights.safetensors").is_file() || fs::read_dir(shared.join("final")).unwrap().count() > 0
    );
    assert!(
        fs::read_dir(shared.join("checkpoints")).unwrap().count() > 0,
        "checkpoints are on the shared volume"
    );
    assert_eq!(cluster.api.spec()["leaseTransitions"], 2);
    let audit = stage.lockstep(&format!("ledger audit {}", ledger.display()));
    assert_eq!(audit.status.code(), Some(0), "{}", said(&audit));
    let trained = fs::read_to_string(ledger.join("metrics.jsonl")).unwrap();
    let worlds: Vec<u64> = trained
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["generation"].as_u64())
        .collect();
    assert!(worlds.iter().max() >= Some(&2), "the kill made another generation");
}
