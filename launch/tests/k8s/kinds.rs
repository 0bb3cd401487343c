//! The kinds of the controllers of JobSet, MPI and Kubeflow, field by field as far as our objects have them, so that their
//! shapes are checked on machines without the published definitions too (`schemas` has those, where a folder of them is
//! named). What a controller hands on to Kubernetes, a Job or a pod, is taken out and held against Kubernetes' own schemas.
//!
//! Written down from the types that the projects publish: kubernetes-sigs/jobset `api/jobset/v1alpha2/jobset_types.go`,
//! kubeflow/mpi-operator `pkg/apis/kubeflow/v2beta1/types.go`, kubeflow/trainer `pkg/apis/trainer/v1alpha1/trainjob_types.go`
//! and `trainingruntime_types.go`; kubernetes/api `batch/v1/types.go` for the reasons for which a Job fails.

use serde_json::{Value, json};

use super::{find, objects, variants};
use crate::stage::Stage;

/// What may stand at a place.
#[derive(Debug, Clone, Copy)]
enum Is {
    Text,
    /// One of these.
    Word(&'static [&'static str]),
    Number,
    Switch,
    /// A Job without name: Kubernetes' own.
    Job,
    /// A pod without name: Kubernetes' own.
    Pod,
}

/// Places below `spec`, with `*` for any index of a list.
type Places = &'static [(&'static str, Is)];

const JOB_SET: Places = &[
    ("network/enableDNSHostnames", Is::Switch),
    ("network/publishNotReadyAddresses", Is::Switch),
    ("successPolicy/operator", Is::Word(&["All", "Any"])),
    ("failurePolicy/maxRestarts", Is::Number),
    ("failurePolicy/rules/*/name", Is::Text),
    (
        "failurePolicy/rules/*/action",
        Is::Word(&["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]),
    ),
    (
        "failurePolicy/rules/*/onJobFailureReasons/*",
        Is::Word(&[
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        ]),
    ),
    ("replicatedJobs/*/name", Is::Text),
    ("replicatedJobs/*/replicas", Is::Number),
    ("replicatedJobs/*/template", Is::Job),
];
const MPI_JOB: Places = &[
    ("mpiImplementation", Is::Word(&["OpenMPI", "Intel", "MPICH"])),
    ("slotsPerWorker", Is::Number),
    ("sshAuthMountPath", Is::Text),
    (
        "launcherCreationPolicy",
        Is::Word(&["AtStartup", "WaitForWorkersReady"]),
    ),
    ("runPolicy/backoffLimit", Is::Number),
    ("runPolicy/cleanPodPolicy", Is::Word(&["None", "Running", "All"])),
    ("mpiReplicaSpecs/Launcher/replicas", Is::Number),
    (
        "mpiReplicaSpecs/Launcher/restartPolicy",
        Is::Word(&["Never", "OnFailure"]),
    ),
    ("mpiReplicaSpecs/Launcher/template", Is::Pod),
    ("mpiReplicaSpecs/Worker/replicas", Is::Number),
    (
        "mpiReplicaSpecs/Worker/restartPolicy",
        Is::Word(&["Never", "OnFailure"]),
    ),
    ("mpiReplicaSpecs/Worker/template", Is::Pod),
];
const TRAIN_JOB: Places = &[
    ("runtimeRef/apiGroup", Is::Text),
    (
        "runtimeRef/kind",
        Is::Word(&["TrainingRuntime", "ClusterTrainingRuntime"]),
    ),
    ("runtimeRef/name", Is::Text),
    ("trainer/numNodes", Is::Number),
];
const RUNTIME: Places = &[("mlPolicy/numNodes", Is::Number)];
/// Where a runtime has what a JobSet has.
const RUNTIMES_JOB_SET: &str = "template/spec/";

/// What may stand at a place of an object of ours.
fn at(object: &Value, path: &str) -> Option<Is> {
    let look_up = |places: Places, path: &str| places.iter().find(|(own, _)| *own == path).map(|(_, is)| *is);
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("jobset.x-k8s.io/v1alpha2", "JobSet") => look_up(JOB_SET, path),
        ("kubeflow.org/v2beta1", "MPIJob") => look_up(MPI_JOB, path),
        ("trainer.kubeflow.org/v1alpha1", "TrainJob") => look_up(TRAIN_JOB, path),
        ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime") => match path.strip_prefix(RUNTIMES_JOB_SET) {
            Some(inner) => look_up(JOB_SET, inner),
            None => look_up(RUNTIME, path),
        },
        (version, kind) => panic!("{version} {kind} is no kind of a controller that is known here"),
    }
}

/// Whether this object is of a kind that a controller brings.
pub(crate) fn is_of_a_controller(object: &Value) -> bool {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    ["jobset.x-k8s.io/", "kubeflow.org/", "trainer.kubeflow.org/"]
        .iter()
        .any(|group| version.starts_with(group))
}

/// What is wrong with an object, and the Jobs and pods in it as objects of Kubernetes.
pub(crate) fn looked_at(object: &Value) -> (Vec<String>, Vec<Value>) {
    let (mut wrong, mut inner) = (Vec::new(), Vec::new());
    walk(object, &object["spec"], "", &mut wrong, &mut inner);
    (wrong, inner)
}

fn walk(object: &Value, value: &Value, path: &str, wrong: &mut Vec<String>, inner: &mut Vec<Value>) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}/{key}")
        }
    };
    let name = object["metadata"]["name"].clone();
    match (at(object, path), value) {
        (Some(Is::Job), Value::Object(_)) => {
            let (metadata, spec) = (&value["metadata"]["labels"], &value["spec"]);
            let metadata = match metadata {
                Value::Null => json!({ "name": name }),
                labels => json!({ "name": name, "labels": labels }),
            };
            inner.push(json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec }));
            let known = |key: &&String| *key != "metadata" && *key != "spec";
            wrong.extend(value.as_object().unwrap().keys().filter(known).map(|key| below(key)));
        }
        (Some(Is::Pod), Value::Object(_)) => {
            inner.push(
                json!({ "apiVersion": "v1", "kind": "PodTemplate", "metadata": { "name": name }, "template": value }),
            );
        }
        (Some(Is::Text), Value::String(_))
        | (Some(Is::Number), Value::Number(_))
        | (Some(Is::Switch), Value::Bool(_)) => {}
        (Some(Is::Word(words)), Value::String(word)) if words.contains(&word.as_str()) => {}
        (Some(is), other) => wrong.push(format!("{path}: {other} is no {is:?}")),
        (None, Value::Object(map)) => map
            .iter()
            .for_each(|(key, value)| walk(object, value, &below(key), wrong, inner)),
        (None, Value::Array(list)) => list
            .iter()
            .for_each(|value| walk(object, value, &below("*"), wrong, inner)),
        (None, other) => wrong.push(format!("{path} is no field of {}: {other}", object["kind"])),
    }
}

#[test]
fn every_field_of_a_controllers_kind_is_one_that_it_has() {
    let stage = Stage::new();
    let mut kinds = std::collections::BTreeMap::new();
    for variant in variants() {
        for object in objects(&stage, &variant)
            .iter()
            .filter(|object| is_of_a_controller(object))
        {
            let (wrong, inner) = looked_at(object);
            assert!(wrong.is_empty(), "{variant}: {wrong:#?}");
            kinds.insert(object["kind"].as_str().unwrap().to_owned(), inner.len());
        }
    }
    let expected = [("JobSet", 2), ("MPIJob", 2), ("TrainJob", 0), ("TrainingRuntime", 2)];
    assert_eq!(kinds, expected.map(|(kind, inner)| (kind.to_owned(), inner)).into());
}

#[test]
fn a_field_that_is_misspelt_or_of_another_type_is_named() {
    let stage = Stage::new();
    let wrong = |overlay: &str, kind: &str, place: &str, value: Value| {
        let objects = objects(&stage, &format!("--overlay {overlay}"));
        let mut object = find(&objects, kind, "").clone();
        assert_eq!(looked_at(&object).0, Vec::<String>::new());
        let (parent, key) = place.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        looked_at(&object).0.join("; ")
    };
    for (overlay, kind, place, value) in [
        ("jobset", "JobSet", "/spec/failurePolicy/maxRestart", json!(1)),
        ("jobset", "JobSet", "/spec/successPolicy/operator", json!("Both")),
        ("jobset", "JobSet", "/spec/replicatedJobs/0/replica", json!(1)),
        ("mpijob", "MPIJob", "/spec/slotsPerWorker", json!("1")),
        (
            "mpijob",
            "MPIJob",
            "/spec/mpiReplicaSpecs/Workers",
            json!({ "replicas": 1 }),
        ),
        ("trainjob", "TrainJob", "/spec/trainer/nodes", json!(2)),
        (
            "trainjob",
            "TrainingRuntime",
            "/spec/template/spec/networks",
            json!(true),
        ),
    ] {
        let word = place.rsplit('/').next().unwrap();
        let found = wrong(overlay, kind, place, value);
        assert!(found.contains(word), "{place}: {found:?}");
    }
}
