//! The Lease of a coordinator, and the one right that it takes: to read and renew this Lease.
//!
//! The Lease is made with the other objects, since a right to make Leases cannot be held to one name. It is empty: who holds it
//! is written there by the coordinator, and stays when the objects are applied again.

use serde_json::{Value, json};

use super::{Part, metadata, name_of};
use crate::k8s::settings::Settings;

/// None where the run has no Lease.
pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    if !settings.has_lease {
        return Vec::new();
    }
    let name = name_of(settings, Part::Coordinator);
    let object = |version: &str, kind: &str| {
        json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": metadata(settings, &name, Some(Part::Coordinator)),
        })
    };
    let mut account = object("v1", "ServiceAccount");
    // The coordinator's pod mounts it by its own word.
    account["automountServiceAccountToken"] = json!(false);
    let mut lease = object("coordination.k8s.io/v1", "Lease");
    lease["spec"] = json!({});
    let mut role = object("rbac.authorization.k8s.io/v1", "Role");
    role["rules"] = json!([{
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [name],
        "verbs": ["get", "update"],
    }]);
    let mut binding = object("rbac.authorization.k8s.io/v1", "RoleBinding");
    binding["roleRef"] = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name });
    // A subject must name its namespace; kustomize writes another in its place.
    let namespace = settings.namespace.as_deref().unwrap_or("default");
    binding["subjects"] = json!([{ "kind": "ServiceAccount", "name": name, "namespace": namespace }]);
    vec![account, lease, role, binding]
}
