//! What starts and replaces the pods: a way for each overlay.
//!
//! Exit codes of both programs: 0 the run is done; 2 what they were given cannot be used, and will not be the next time; 3 an
//! operator has stopped the run; 4 (trainers) memory has changed by itself, another process is wanted; anything else is a
//! failure. A pod that its node had to let go is replaced and never counted.

use serde_json::{Value, json};

use super::pods::{self, SSH_KEYS};
use super::{Part, metadata, name_of, selector};
use crate::cli::Overlay;
use crate::k8s::settings::Settings;

/// What starts the pods of the chosen overlay.
pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    match settings.overlay {
        Overlay::IndexedJob => vec![
            job(settings, Part::Coordinator, coordinator_job(settings)),
            job(settings, Part::Trainer, indexed_trainers(settings)),
        ],
        Overlay::Elastic => vec![
            stateful_coordinator(settings),
            job(settings, Part::Trainer, elastic_trainers(settings)),
        ],
        Overlay::Jobset => vec![job_set(settings)],
        Overlay::Mpijob => vec![mpi_job(settings)],
        Overlay::Trainjob => vec![training_runtime(settings), train_job(settings)],
    }
}

/// What a stopped run means for the trainers' Job.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// It ends.
    Ends,
    /// Nothing: a trainer that leaves in order ends with this code too, and here trainers leave.
    Ignored,
}

fn failure_policy(part: Part, stopped: Stopped) -> Value {
    let exit =
        |action: &str, code: u8| json!({ "action": action, "onExitCodes": { "operator": "In", "values": [code] } });
    let mut rules = vec![
        // First, since a pod that has to leave ends with a code as well.
        json!({ "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] }),
        exit("FailJob", 2),
        exit(if stopped == Stopped::Ends { "FailJob" } else { "Ignore" }, 3),
    ];
    if part == Part::Trainer {
        rules.push(exit("Count", 4));
    }
    json!({ "rules": rules })
}

fn job(settings: &Settings, part: Part, spec: Value) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(settings, &name_of(settings, part), Some(part)),
        "spec": spec,
    })
}

/// One coordinator at a time: another pod is made when the one before has ended.
fn coordinator_job(settings: &Settings) -> Value {
    json!({
        "backoffLimit": settings.config.fault.max_restarts,
        "completions": 1,
        "parallelism": 1,
        "podFailurePolicy": failure_policy(Part::Coordinator, Stopped::Ends),
        "podReplacementPolicy": "Failed",
        "template": pods::coordinator(settings, "Never"),
    })
}

/// So many trainers, each with an index; done when each has trained to the end.
fn indexed_trainers(settings: &Settings) -> Value {
    json!({
        "backoffLimit": settings.config.fault.max_restarts,
        "completionMode": "Indexed",
        "completions": settings.ranks,
        "parallelism": settings.ranks,
        "podFailurePolicy": failure_policy(Part::Trainer, Stopped::Ends),
        "podReplacementPolicy": "Failed",
        "template": pods::trainer(settings),
    })
}

/// As many trainers as parallelism says at the moment: without completions, the Job makes more and lets some go as it is
/// changed, and is done when one has trained to the end and the others have ended.
fn elastic_trainers(settings: &Settings) -> Value {
    json!({
        "backoffLimit": settings.config.fault.max_restarts,
        "parallelism": settings.ranks,
        "podFailurePolicy": failure_policy(Part::Trainer, Stopped::Ignored),
        "podReplacementPolicy": "Failed",
        "template": pods::trainer(settings),
    })
}

fn stateful_coordinator(settings: &Settings) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(settings, &settings.coordinator(), Some(Part::Coordinator)),
        "spec": {
            "replicas": 1,
            "serviceName": settings.coordinator(),
            "selector": { "matchLabels": selector(settings, Some(Part::Coordinator)) },
            "template": pods::coordinator(settings, "Always"),
        },
    })
}

fn replicated(name: &str, spec: Value) -> Value {
    json!({ "name": name, "replicas": 1, "template": { "spec": spec } })
}

/// Both Jobs as one object: done when both are, begun again together when one has failed as often as it may, and at an end
/// at once when a code says that beginning again is of no use.
fn both_jobs(settings: &Settings, trainers: Value) -> Value {
    json!({
        "network": { "enableDNSHostnames": true, "publishNotReadyAddresses": true },
        "successPolicy": { "operator": "All" },
        "failurePolicy": {
            "maxRestarts": settings.config.fault.max_restarts,
            "rules": [{
                "name": "of-no-use-again",
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
            }],
        },
        "replicatedJobs": [replicated("coordinator", coordinator_job(settings)), trainers],
    })
}

fn job_set(settings: &Settings) -> Value {
    json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata(settings, &settings.name, None),
        "spec": both_jobs(settings, replicated("trainer", indexed_trainers(settings))),
    })
}

fn mpi_job(settings: &Settings) -> Value {
    json!({
        "apiVersion": "kubeflow.org/v2beta1",
        "kind": "MPIJob",
        "metadata": metadata(settings, &settings.name, None),
        "spec": {
            "mpiImplementation": "OpenMPI",
            "slotsPerWorker": 1,
            "sshAuthMountPath": SSH_KEYS,
            "launcherCreationPolicy": "WaitForWorkersReady",
            "runPolicy": { "backoffLimit": settings.config.fault.max_restarts, "cleanPodPolicy": "All" },
            "mpiReplicaSpecs": {
                "Launcher": { "replicas": 1, "restartPolicy": "Never", "template": pods::launcher(settings) },
                "Worker": { "replicas": settings.ranks, "restartPolicy": "OnFailure", "template": pods::worker(settings) },
            },
        },
    })
}

/// The runtime has everything; a TrainJob names it. The trainer's replicated job and container have the names, and the
/// label, by which Kubeflow knows them.
fn training_runtime(settings: &Settings) -> Value {
    let mut trainers = replicated("node", indexed_trainers(settings));
    trainers["template"]["metadata"] =
        json!({ "labels": { "trainer.kubeflow.org/trainjob-ancestor-step": "trainer" } });
    json!({
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": metadata(settings, &settings.name, None),
        "spec": {
            "mlPolicy": { "numNodes": settings.ranks },
            "template": { "spec": both_jobs(settings, trainers) },
        },
    })
}

fn train_job(settings: &Settings) -> Value {
    json!({
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata(settings, &settings.name, None),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": settings.name,
            },
            "trainer": { "numNodes": settings.ranks },
        },
    })
}
