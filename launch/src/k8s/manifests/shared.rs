//! What every overlay has.

use serde_json::{Value, json};

use super::{Part, metadata, name_of, selector};
use crate::cli::Overlay;
use crate::k8s::settings::Settings;

/// In the order in which they are made.
pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    let mut objects = vec![account(settings), config(settings), service(settings)];
    objects.extend([coordinators_network(settings), trainers_network(settings)]);
    objects.extend(claims(settings));
    objects.push(disruption_budget(settings));
    objects
}

/// An account without any right: no pod of a run calls the cluster, but for a coordinator with a Lease, which has its own.
fn account(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(settings, &settings.name, None),
        "automountServiceAccountToken": false,
    })
}

fn config(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(settings, &format!("{}-config", settings.name), None),
        "data": { "run.toml": settings.config.to_toml() },
    })
}

/// The coordinator's address: the pod's own, without one in between, and also before it serves, since who waits for it
/// must find it.
fn service(settings: &Settings) -> Value {
    let mut ports = vec![json!({ "name": "grpc", "port": settings.port, "targetPort": "grpc" })];
    if settings.overlay != Overlay::Mpijob {
        ports.push(json!({ "name": "health", "port": settings.health_port(), "targetPort": "health" }));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(settings, &settings.coordinator(), Some(Part::Coordinator)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": selector(settings, Some(Part::Coordinator)),
            "ports": ports,
        },
    })
}

/// Only the run's own pods reach the coordinator, at its ports. Operators come by `kubectl port-forward`, which is no
/// traffic between pods.
fn coordinators_network(settings: &Settings) -> Value {
    let ports = [settings.port, settings.health_port()].map(|port| json!({ "protocol": "TCP", "port": port }));
    let of_run = json!([{ "podSelector": { "matchLabels": selector(settings, None) } }]);
    let mut policy = network(settings, Part::Coordinator, json!([{ "from": of_run, "ports": ports }]));
    if settings.has_lease
        && let Some(egress) = policy["spec"]["egress"].as_array_mut()
    {
        // The cluster's own address, at the two ports that it is served at.
        let ports = [443, 6443].map(|port| json!({ "protocol": "TCP", "port": port }));
        egress.push(json!({ "ports": ports }));
    }
    policy
}

/// Trainers reach each other at ports that the system chooses.
fn trainers_network(settings: &Settings) -> Value {
    let of_run = json!([{ "podSelector": { "matchLabels": selector(settings, None) } }]);
    network(settings, Part::Trainer, json!([{ "from": of_run }]))
}

/// Out go: whatever is for the run's own pods, the resolution of names, and what the config names.
fn network(settings: &Settings, part: Part, ingress: Value) -> Value {
    let of_run = json!([{ "podSelector": { "matchLabels": selector(settings, None) } }]);
    let names = ["UDP", "TCP"].map(|protocol| json!({ "protocol": protocol, "port": 53 }));
    let mut egress = vec![json!({ "to": of_run }), json!({ "ports": names })];
    if !settings.outside.is_empty() {
        let ports: Vec<Value> = settings
            .outside
            .iter()
            .map(|port| json!({ "protocol": "TCP", "port": port }))
            .collect();
        egress.push(json!({ "ports": ports }));
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(settings, &name_of(settings, part), Some(part)),
        "spec": {
            "podSelector": { "matchLabels": selector(settings, Some(part)) },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    })
}

/// The ledger's volume is one pod's at a time: that, and the lock on the ledger, keeps a second coordinator away. The others
/// are every pod's, on whatever node.
fn claims(settings: &Settings) -> Vec<Value> {
    let claim = |name: &str, mode: &str, gib: u64| {
        let mut metadata = metadata(settings, &format!("{}-{name}", settings.name), None);
        // They can be made, and filled, before all else.
        metadata["labels"]["app.kubernetes.io/component"] = json!("volume");
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": metadata,
            "spec": { "accessModes": [mode], "resources": { "requests": { "storage": format!("{gib}Gi") } } },
        })
    };
    let mut claims = vec![claim("data", "ReadWriteMany", 10)];
    if settings.config.data.validation.is_some() {
        claims.push(claim("validation", "ReadWriteMany", 10));
    }
    claims.push(claim("shared", "ReadWriteMany", settings.shared_gib()));
    // mpirun's coordinator keeps the ledger in the run's folder, which its hosts share.
    if settings.overlay != Overlay::Mpijob {
        claims.push(claim("ledger", "ReadWriteOncePod", 5));
    }
    claims
}

/// One trainer at a time leaves a node that is emptied, so that its buddy has its part of the snapshot. A number that stays,
/// since Jobs have no scale that a budget could ask for. The coordinator needs none: it may always leave.
fn disruption_budget(settings: &Settings) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(settings, &name_of(settings, Part::Trainer), Some(Part::Trainer)),
        "spec": {
            "minAvailable": settings.ranks - 1,
            "selector": { "matchLabels": selector(settings, Some(Part::Trainer)) },
            // One that does not work protects nothing.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    })
}
