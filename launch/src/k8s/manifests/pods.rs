//! The pods: a coordinator, a trainer; for MPI a launcher, in which the coordinator is, and a worker.

use serde_json::{Value, json};

use super::containers::{
    Mounts, container_security, coordinator_resources, credentials, of_gpu, of_pod, of_store, pod_security, sets,
    small_resources, threads, trainer_resources, variable,
};
use super::{Part, name_of, selector};
use crate::cli::Overlay;
use crate::k8s::in_pods::{CONFIG, LEDGER, SHARED};
use crate::k8s::settings::Settings;

/// Seconds that a coordinator has to leave: it has written down everything already.
const COORDINATOR_GRACE: u64 = 30;
/// Seconds for which a trainer's pod waits for its coordinator: an image is fetched and a volume is made meanwhile.
const WAIT: &str = "900";
/// Where the operator of MPI puts the keys of its hosts: in the folder of the image's user.
pub(super) const SSH_KEYS: &str = "/srv/lockstep/.ssh";
/// Where it writes the names of its hosts.
const HOSTFILE: &str = "/etc/mpi/hostfile";
/// Where hosts of MPI listen: a port that needs no privilege.
const SSH_PORT: u16 = 2222;

/// Starts mpirun's launcher and ends as it does, with two exceptions. A run that an operator has stopped is not to be begun
/// again, which the controller would do after any other code than 0; and one that is stopped because this pod has to leave
/// is.
const LAUNCH: &str = r#"asked=
child=
told=
tell() {
  if [ -n "$asked" ] && [ -n "$child" ] && [ -z "$told" ]; then
    told=yes
    kill -TERM "$child"
  fi
}
trap 'asked=yes; tell' TERM
lockstep mpirun "$@" &
child=$!
tell
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do
  wait "$child"
  code=$?
done
if [ "$code" = 3 ] && [ -z "$asked" ]; then exit 0; fi
exit "$code"
"#;

/// The container of a trainer: of that name where a controller wants another than `trainer`.
fn trainer_name(settings: &Settings) -> &'static str {
    match settings.overlay {
        Overlay::Trainjob => "node",
        _ => "trainer",
    }
}

/// A pod from its parts.
fn pod(settings: &Settings, part: Part, restart: Option<&str>, grace: u64, rest: Value) -> Value {
    let mut spec = json!({
        "serviceAccountName": settings.name,
        // Nothing in a pod calls the cluster, but for a coordinator with a Lease.
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": grace,
    });
    if let Some(restart) = restart {
        spec["restartPolicy"] = json!(restart);
    }
    if settings.gpu && part == Part::Trainer {
        spec["tolerations"] = json!([{ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" }]);
    }
    if let (Value::Object(spec), Value::Object(rest)) = (&mut spec, rest) {
        spec.extend(rest);
    }
    json!({
        "metadata": {
            "labels": selector(settings, Some(part)),
            "annotations": { "lockstep/config": settings.config_fingerprint() },
        },
        "spec": spec,
    })
}

/// The coordinator, by a controller that starts it again by another pod (`Never`) or in the same one (`Always`).
pub(super) fn coordinator(settings: &Settings, restart: &str) -> Value {
    let mounts = Mounts::default()
        .config(settings)
        .data(settings)
        .ledger(settings)
        .shared(settings)
        .scratch()
        .secret(settings, Part::Coordinator);
    let mut arguments: Vec<String> = [
        "--config",
        &format!("{CONFIG}/run.toml"),
        "--run-dir",
        &format!("{LEDGER}/runs/{}", settings.config.run.name),
        "--ranks",
        &settings.ranks.to_string(),
        "--listen",
        &format!("0.0.0.0:{}", settings.port),
        "--health",
        &format!("0.0.0.0:{}", settings.health_port()),
        "--on-sigterm",
        "leave",
    ]
    .map(str::to_owned)
    .to_vec();
    if restart == "Always" {
        // Else it would be started again for ever, and a stopped run would go on.
        arguments.push("--stay".to_owned());
    }
    arguments.extend(sets(settings));
    let mut container = json!({
        "name": "coordinator",
        "image": settings.coordinator_image,
        "command": ["lockstep-coordinator"],
        "args": arguments,
        "ports": [
            { "name": "grpc", "containerPort": settings.port },
            { "name": "health", "containerPort": settings.health_port() },
        ],
        "livenessProbe": {
            "grpc": { "port": settings.health_port() },
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "readinessProbe": {
            "grpc": { "port": settings.health_port(), "service": "lockstep.v1.Training" },
            "periodSeconds": 5,
            "timeoutSeconds": 5,
        },
        "resources": coordinator_resources(settings),
        "securityContext": container_security(),
        "volumeMounts": mounts.mounts,
    });
    if let Some(store) = of_store(settings) {
        container["envFrom"] = store;
    }
    if settings.has_lease {
        // The uid is another one in every pod, also where the name is the same.
        container["env"] = json!([
            variable("LOCKSTEP_LEASE", name_of(settings, Part::Coordinator)),
            of_pod("LOCKSTEP_LEASE_HOLDER", "metadata.uid"),
        ]);
    }
    let mut rest = json!({ "containers": [container], "volumes": mounts.volumes });
    if settings.has_lease {
        rest["serviceAccountName"] = json!(name_of(settings, Part::Coordinator));
        rest["automountServiceAccountToken"] = json!(true);
    }
    pod(settings, Part::Coordinator, Some(restart), COORDINATOR_GRACE, rest)
}

/// A trainer, named after its pod, reached at its pod's address. It has no probe: the coordinator knows by its lease whether
/// it lives and makes progress, which no probe could tell, and it ends by itself when it was given up.
pub(super) fn trainer(settings: &Settings) -> Value {
    let mounts = Mounts::default()
        .data(settings)
        .shared(settings)
        .shared_memory(settings)
        .scratch()
        .secret(settings, Part::Trainer);
    let mut environment = vec![
        of_pod("LOCKSTEP_MEMBER", "metadata.name"),
        of_pod("LOCKSTEP_ADVERTISE", "status.podIP"),
        variable("LOCKSTEP_COORDINATOR", settings.url()),
        variable("LOCKSTEP_RUN_DIR", settings.run_dir()),
    ];
    environment.extend(threads(settings));
    environment.extend(of_gpu(settings));
    environment.extend(credentials(settings));
    let mut container = json!({
        "name": trainer_name(settings),
        "image": settings.image,
        "command": ["lockstep-trainer"],
        "args": ["train"],
        "env": environment,
        "resources": trainer_resources(settings),
        "securityContext": container_security(),
        "volumeMounts": mounts.mounts,
    });
    if let Some(store) = of_store(settings) {
        container["envFrom"] = store;
    }
    let health = format!("http://{}:{}", settings.coordinator(), settings.health_port());
    let waits = json!({
        "name": "wait-for-coordinator",
        "image": settings.image,
        "command": ["lockstep"],
        "args": ["health", "--coordinator", health, "--wait", WAIT],
        "resources": small_resources(),
        "securityContext": container_security(),
    });
    let rest = json!({ "initContainers": [waits], "containers": [container], "volumes": mounts.volumes });
    pod(settings, Part::Trainer, Some("Never"), settings.grace_seconds, rest)
}

/// The launcher of MPI: mpirun, and the coordinator with it.
pub(super) fn launcher(settings: &Settings) -> Value {
    let mounts = Mounts::default()
        .config(settings)
        .data(settings)
        .shared(settings)
        .scratch()
        .secret(settings, Part::Coordinator);
    let mut arguments: Vec<String> = [
        "lockstep-mpirun",
        &format!("{CONFIG}/run.toml"),
        "-n",
        &settings.ranks.to_string(),
        "--hostfile",
        HOSTFILE,
        "--resume",
        // The name that the certificate is for, and not this pod's own.
        "--advertise",
        &settings.coordinator(),
        "--set",
        &format!("coordinator.bind=0.0.0.0:{}", settings.port),
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(sets(settings));
    let mut environment: Vec<Value> = threads(settings).into();
    environment.extend(of_gpu(settings));
    // Trainers get a token of their own from the launcher, and trust this authority.
    environment.extend(credentials(settings).into_iter().take(1));
    // Asked inside the pod, where TLS is no hindrance: kubelet's own question by gRPC knows no TLS.
    let scheme = if settings.tls { "https" } else { "http" };
    let own = format!("{scheme}://localhost:{}", settings.port);
    let asks = json!({ "command": ["lockstep", "health", "--coordinator", own] });
    let mut container = json!({
        "name": "launcher",
        "image": settings.image,
        "command": ["/bin/sh", "-c", LAUNCH],
        "args": arguments,
        "env": environment,
        // The run's folder is made under the current one, and is the same for every host.
        "workingDir": SHARED,
        "ports": [{ "name": "grpc", "containerPort": settings.port }],
        "startupProbe": { "exec": asks, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 90 },
        "livenessProbe": { "exec": asks, "periodSeconds": 20, "timeoutSeconds": 10, "failureThreshold": 6 },
        "readinessProbe": { "exec": asks, "periodSeconds": 10, "timeoutSeconds": 10 },
        "resources": coordinator_resources(settings),
        "securityContext": container_security(),
        "volumeMounts": mounts.mounts,
    });
    if let Some(store) = of_store(settings) {
        container["envFrom"] = store;
    }
    let rest = json!({ "containers": [container], "volumes": mounts.volumes });
    pod(settings, Part::Coordinator, None, settings.grace_seconds, rest)
}

/// A host of MPI: a shell server that lets the launcher in, and what it starts.
pub(super) fn worker(settings: &Settings) -> Value {
    let mounts = Mounts::default()
        .data(settings)
        .shared(settings)
        .shared_memory(settings)
        .scratch()
        .secret(settings, Part::Trainer);
    let mut environment: Vec<Value> = threads(settings).into();
    environment.extend(of_gpu(settings));
    environment.extend(credentials(settings));
    let mut container = json!({
        "name": "worker",
        "image": settings.image,
        "command": ["/usr/sbin/sshd"],
        "args": ["-D", "-e", "-f", "/srv/lockstep/sshd_config"],
        "env": environment,
        "ports": [{ "name": "ssh", "containerPort": SSH_PORT }],
        "livenessProbe": { "tcpSocket": { "port": SSH_PORT }, "periodSeconds": 20, "failureThreshold": 6 },
        "readinessProbe": { "tcpSocket": { "port": SSH_PORT }, "periodSeconds": 2 },
        "resources": trainer_resources(settings),
        "securityContext": container_security(),
        "volumeMounts": mounts.mounts,
    });
    if let Some(store) = of_store(settings) {
        container["envFrom"] = store;
    }
    let rest = json!({ "containers": [container], "volumes": mounts.volumes });
    pod(settings, Part::Trainer, None, settings.grace_seconds, rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use clap::Parser as _;

    use super::{HOSTFILE, LAUNCH, launcher};
    use crate::cli::{Cli, Command as Words, Overlay};
    use crate::k8s::choice::Choice;
    use crate::k8s::in_pods::tests::config;
    use crate::k8s::settings::Settings;

    #[test]
    fn the_launchers_words_are_ones_that_lockstep_mpirun_takes() {
        for tls in [false, true] {
            let choice = Choice {
                overlay: Overlay::Mpijob,
                gpu: false,
                tls,
                lease: false,
                image: None,
                namespace: None,
                ranks: Some(3),
            };
            let pod = launcher(&Settings::of(&config(&[]), &choice).unwrap());
            let words = pod["spec"]["containers"][0]["args"].as_array().unwrap().iter();
            let words = words.map(|word| word.as_str().unwrap()).skip(1);
            let typed = Cli::try_parse_from(["lockstep", "mpirun"].into_iter().chain(words)).unwrap();
            let Words::Mpirun(arguments) = typed.command else {
                panic!("{typed:?}");
            };
            assert_eq!((arguments.ranks, arguments.training.resume), (3, true));
            assert_eq!(arguments.hostfile.as_deref(), Some(HOSTFILE.as_ref()));
            // The name in the coordinator's certificate.
            assert_eq!(arguments.advertise.as_deref(), Some("a-coordinator"));
        }
    }

    /// The launcher's script with a stand-in for `lockstep mpirun`, and a signal at it or none; its exit code.
    fn launched(stand_in: &str, signalled: bool) -> i32 {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lockstep");
        std::fs::write(&program, format!("#!/bin/sh\n{stand_in}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", folder.path().display());
        let mut child = Command::new("/bin/sh")
            .args(["-c", LAUNCH, "lockstep-mpirun", "a.toml", "-n", "2"])
            .env("PATH", path)
            .env("BEGUN", folder.path().join("begun"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        if signalled {
            let begun = Instant::now();
            while !folder.path().join("begun").exists() {
                assert!(begun.elapsed() < Duration::from_secs(20), "the stand-in does not start");
                std::thread::sleep(Duration::from_millis(10));
            }
            let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        }
        child.wait().unwrap().code().unwrap()
    }

    #[test]
    fn the_launcher_ends_as_the_run_does_and_a_stopped_run_is_not_begun_again() {
        for code in [0, 1, 2] {
            assert_eq!(launched(&format!("exit {code}"), false), code);
        }
        assert_eq!(launched("exit 3", false), 0, "an operator has stopped it");
        let says = r#"[ "$*" = "mpirun a.toml -n 2" ] || exit 9"#;
        assert_eq!(launched(says, false), 0, "the words are passed on");
        // The signal reaches the run, which ends in order, and the controller begins it again elsewhere.
        let leaves = "trap 'sleep 0.2; exit 3' TERM\n: > \"$BEGUN\"\nwhile :; do sleep 0.05; done";
        assert_eq!(launched(leaves, true), 3, "the pod has to leave");
        // It may come as soon as the run is there, before the script knows its process.
        let at_once = "trap 'sleep 0.2; exit 3' TERM\nkill -TERM $PPID\nwhile :; do sleep 0.05; done";
        for _ in 0..20 {
            assert_eq!(launched(at_once, false), 3, "the pod has to leave at once");
        }
    }
}
