//! Parts of pods: who runs in them, what they may, what is mounted, how they are told where things are.

use lockstep_config::{GPU_DEFAULTS, GPU_ENVIRONMENT};
use serde_json::{Value, json};

use super::{Part, name_of};
use crate::k8s::in_pods::{CONFIG, DATA, LEDGER, SECRET, SHARED, VALIDATION};
use crate::k8s::memory::MIB;
use crate::k8s::settings::Settings;

/// The user and group of the image: nobody's on any machine.
const USER: u32 = 65532;

/// Bytes as Kubernetes writes them.
pub(super) fn quantity(bytes: u64) -> Value {
    json!(format!("{}Mi", bytes.div_ceil(MIB)))
}

/// Of a pod: nobody is root, and calls of the kernel are those that the container engine allows.
pub(super) fn pod_security() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": USER,
        "runAsGroup": USER,
        // Volumes and secrets are readable for this group.
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// Of a container.
pub(super) fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    })
}

/// What a trainer may use. Its other threads (session, loader, snapshots) have a core more, when they need it; of memory it
/// has what it asks for, so that a node is never short of it.
pub(super) fn trainer_resources(settings: &Settings) -> Value {
    let threads = settings.config.run.intra_op_threads;
    let memory = quantity(settings.trainer_memory());
    let mut limits = json!({ "cpu": (threads + 1).to_string(), "memory": memory });
    if settings.gpu {
        limits["nvidia.com/gpu"] = json!("1");
    }
    json!({ "requests": { "cpu": threads.to_string(), "memory": memory }, "limits": limits })
}

/// What a coordinator may use: some tens of MiB, and tens of KiB for each member.
pub(super) fn coordinator_resources(settings: &Settings) -> Value {
    let memory = quantity((512 + u64::from(settings.ranks)) * MIB);
    json!({ "requests": { "cpu": "250m", "memory": memory }, "limits": { "cpu": "2", "memory": memory } })
}

/// What a program that only asks may use.
pub(super) fn small_resources() -> Value {
    json!({ "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "cpu": "1", "memory": "64Mi" } })
}

/// Volumes of a pod, with their places in its containers.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Of the pod.
    pub(super) volumes: Vec<Value>,
    /// Of a container.
    pub(super) mounts: Vec<Value>,
}

impl Mounts {
    fn add(&mut self, name: &str, path: &str, reads_only: bool, source: (&str, Value)) {
        let mut mount = json!({ "name": name, "mountPath": path });
        if reads_only {
            mount["readOnly"] = json!(true);
        }
        self.mounts.push(mount);
        let mut volume = json!({ "name": name });
        volume[source.0] = source.1;
        self.volumes.push(volume);
    }

    fn claim(&mut self, settings: &Settings, name: &str, path: &str, reads_only: bool) {
        let mut claim = json!({ "claimName": format!("{}-{name}", settings.name) });
        if reads_only {
            claim["readOnly"] = json!(true);
        }
        self.add(name, path, reads_only, ("persistentVolumeClaim", claim));
    }

    /// The data, read only.
    pub(super) fn data(mut self, settings: &Settings) -> Mounts {
        self.claim(settings, "data", DATA, true);
        if settings.config.data.validation.is_some() {
            self.claim(settings, "validation", VALIDATION, true);
        }
        self
    }

    /// Checkpoints and final weights.
    pub(super) fn shared(mut self, settings: &Settings) -> Mounts {
        self.claim(settings, "shared", SHARED, false);
        self
    }

    /// The ledger.
    pub(super) fn ledger(mut self, settings: &Settings) -> Mounts {
        self.claim(settings, "ledger", LEDGER, false);
        self
    }

    /// The run's config.
    pub(super) fn config(mut self, settings: &Settings) -> Mounts {
        let source = json!({ "name": format!("{}-config", settings.name) });
        self.add("config", CONFIG, true, ("configMap", source));
        self
    }

    /// A place for what a program throws away, since the image itself cannot be written to.
    pub(super) fn scratch(mut self) -> Mounts {
        self.add("scratch", "/tmp", false, ("emptyDir", json!({ "sizeLimit": "256Mi" })));
        self
    }

    /// Shared memory: that of containers has 64 MiB by itself, whatever a run needs.
    pub(super) fn shared_memory(mut self, settings: &Settings) -> Mounts {
        let source = json!({ "medium": "Memory", "sizeLimit": quantity(settings.shared_memory()) });
        self.add("shared-memory", "/dev/shm", false, ("emptyDir", source));
        self
    }

    /// Certificates and other secrets of a part, where it has any.
    pub(super) fn secret(mut self, settings: &Settings, part: Part) -> Mounts {
        let is_coordinator = part == Part::Coordinator;
        if settings.tls || (is_coordinator && settings.has_webhook_file) {
            // Readable for the group of the pod only.
            let source = json!({ "secretName": name_of(settings, part), "defaultMode": 0o440 });
            self.add("secret", SECRET, true, ("secret", source));
        }
        self
    }
}

/// A variable.
pub(super) fn variable(name: &str, value: impl Into<String>) -> Value {
    json!({ "name": name, "value": value.into() })
}

/// A variable with what is known of the pod only when it starts.
pub(super) fn of_pod(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
}

/// Threads of the tensor library. Another number would give other bits, so it is said even where it is the default.
pub(super) fn threads(settings: &Settings) -> [Value; 2] {
    let threads = settings.config.run.intra_op_threads.to_string();
    ["OMP_NUM_THREADS", "MKL_NUM_THREADS"].map(|name| variable(name, threads.clone()))
}

/// What CUDA's libraries read once, when they begin.
pub(super) fn of_gpu(settings: &Settings) -> Vec<Value> {
    if !settings.gpu {
        return Vec::new();
    }
    let decisive = GPU_ENVIRONMENT
        .iter()
        .filter_map(|(name, value)| Some((*name, (*value)?)));
    let all = decisive.chain(GPU_DEFAULTS.iter().copied());
    all.map(|(name, value)| variable(name, value)).collect()
}

/// What a caller shows to a coordinator that talks TLS.
pub(super) fn credentials(settings: &Settings) -> Vec<Value> {
    if !settings.tls {
        return Vec::new();
    }
    let files = [
        ("LOCKSTEP_CA", "ca.crt"),
        ("LOCKSTEP_CERT", "tls.crt"),
        ("LOCKSTEP_KEY", "tls.key"),
    ];
    files
        .map(|(name, file)| variable(name, format!("{SECRET}/{file}")))
        .to_vec()
}

/// Variables that come from a Secret as they are: the credentials of a store of objects.
pub(super) fn of_store(settings: &Settings) -> Option<Value> {
    settings
        .has_object_store
        .then(|| json!([{ "secretRef": { "name": format!("{}-store", settings.name) } }]))
}

/// `--set` for what `--tls` and `--gpu` decide, so that the same config serves with and without.
pub(super) fn sets(settings: &Settings) -> Vec<String> {
    let in_secret = |key: &str, file: &str| format!("security.{key}=\"{SECRET}/{file}\"");
    let mut security = match settings.tls {
        false => vec!["security.insecure_bind=true".to_owned()],
        true => vec![
            in_secret("certificate", "tls.crt"),
            in_secret("key", "tls.key"),
            in_secret("client_ca", "ca.crt"),
        ],
    };
    if settings.has_tokens {
        security.push(in_secret("tokens", "tokens"));
    }
    let device = settings.gpu.then(|| "run.device=\"cuda\"".to_owned());
    let rest = security.split_off(1);
    let all = security.into_iter().chain(device).chain(rest);
    all.flat_map(|set| ["--set".to_owned(), set]).collect()
}
