//! The objects of a run, in the words of Kubernetes.
//!
//! - [`pods`]: the pods of coordinator, trainer and, for MPI, launcher and worker: what runs in them and what they may
//! - [`containers`]: the parts of pods that are said once for all of them
//! - [`lease`]: the coordinator's Lease, with its account and its one right
//! - [`shared`]: what every overlay has: account, config, address, network, volumes, disruption budget
//! - [`workloads`]: what starts and replaces the pods, an overlay each
//!
//! What `--gpu` and `--tls` add stands at the end of its list, GPU first, so that a kustomize component can add it to either.

mod containers;
mod lease;
mod pods;
mod shared;
mod workloads;

use serde_json::{Value, json};

use crate::k8s::settings::Settings;

/// Every object of a run, in the order in which they are made.
pub(crate) fn manifests(settings: &Settings) -> Vec<Value> {
    let mut objects = shared::objects(settings);
    objects.extend(lease::objects(settings));
    objects.extend(workloads::objects(settings));
    if let Some(namespace) = &settings.namespace {
        for object in &mut objects {
            object["metadata"]["namespace"] = json!(namespace);
        }
    }
    objects
}

/// What a pod is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The coordinator, alone or in the launcher of MPI.
    Coordinator,
    /// A trainer, or a host of them.
    Trainer,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Part::Coordinator => "coordinator",
            Part::Trainer => "trainer",
        }
    }
}

/// The name of a part's objects.
fn name_of(settings: &Settings, part: Part) -> String {
    format!("{}-{}", settings.name, part.word())
}

/// By what an object is found; a part's own, or all of the run's.
fn selector(settings: &Settings, part: Option<Part>) -> Value {
    let mut labels = json!({ "app.kubernetes.io/name": "lockstep", "app.kubernetes.io/instance": settings.name });
    if let Some(part) = part {
        labels["app.kubernetes.io/component"] = json!(part.word());
    }
    labels
}

/// Name and labels of an object.
fn metadata(settings: &Settings, name: &str, part: Option<Part>) -> Value {
    let mut labels = selector(settings, part);
    labels["app.kubernetes.io/managed-by"] = json!("lockstep");
    json!({ "name": name, "labels": labels })
}
