//! The rules about pods, their volumes and their containers.

use serde_json::{Value, json};

use super::rules::expect;

/// Finds what breaks a rule in a pod.
pub(super) fn of_pod(spec: &Value, found: &mut Vec<String>) {
    let security = &spec["securityContext"];
    expect(security["runAsNonRoot"] == true, found, "a pod may run as root");
    expect(
        security["runAsUser"].as_u64().is_some_and(|user| user > 0),
        found,
        "a pod names no user",
    );
    expect(
        security["seccompProfile"]["type"] == "RuntimeDefault",
        found,
        "a pod has no seccomp profile",
    );
    let account = spec["serviceAccountName"].as_str().unwrap_or("default");
    expect(
        spec["automountServiceAccountToken"] == account.ends_with("-coordinator"),
        found,
        "a pod has a token of the cluster and needs none, or needs one and has none",
    );
    expect(
        spec["enableServiceLinks"] == false,
        found,
        "other Services are in a pod's environment",
    );
    expect(account != "default", found, "a pod has the default account");
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        expect(
            spec.get(key).is_none_or(|value| value == false),
            found,
            format!("a pod has {key}"),
        );
    }
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(0);
    expect(grace >= 30, found, "a pod is killed before it can leave");
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        of_volume(volume, found);
    }
    let list = |key: &str| spec[key].as_array().cloned().unwrap_or_default();
    for container in list("containers").iter().chain(&list("initContainers")) {
        of_container(container, found);
    }
    for container in list("containers") {
        long_lived(&container, spec, found);
    }
}

fn of_volume(volume: &Value, found: &mut Vec<String>) {
    let name = &volume["name"];
    expect(
        volume.get("hostPath").is_none(),
        found,
        format!("volume {name} is a folder of the node"),
    );
    if let Some(empty) = volume.get("emptyDir") {
        expect(
            empty["sizeLimit"].is_string(),
            found,
            format!("volume {name} may fill the node"),
        );
    }
    if let Some(secret) = volume.get("secret") {
        let mode = secret["defaultMode"].as_u64().unwrap_or(0o644);
        expect(
            mode & 0o007 == 0,
            found,
            format!("volume {name}: everybody in the pod reads the secret"),
        );
    }
}

fn of_container(container: &Value, found: &mut Vec<String>) {
    let name = container["name"].as_str().unwrap_or_default();
    let security = &container["securityContext"];
    expect(
        security["allowPrivilegeEscalation"] == false,
        found,
        format!("{name} may gain privileges"),
    );
    expect(
        security["readOnlyRootFilesystem"] == true,
        found,
        format!("{name} may change its image"),
    );
    expect(
        security["capabilities"] == json!({ "drop": ["ALL"] }),
        found,
        format!("{name} has capabilities"),
    );
    expect(
        security.get("privileged").is_none_or(|value| value == false),
        found,
        format!("{name} is privileged"),
    );
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .split_once(':')
        .map(|(_, tag)| tag);
    let is_fixed = tag.is_some_and(|tag| !tag.is_empty() && tag != "latest");
    expect(is_fixed, found, format!("{name}: its image is latest"));
    let resources = &container["resources"];
    for side in ["requests", "limits"] {
        for what in ["cpu", "memory"] {
            expect(
                resources[side][what].is_string(),
                found,
                format!("{name} has no {what} in its {side}"),
            );
        }
    }
    let (asked, most) = (&resources["requests"]["memory"], &resources["limits"]["memory"]);
    expect(
        asked == most,
        found,
        format!("{name} may use more memory than its node keeps for it"),
    );
}

/// Mebibytes of a quantity.
fn mebibytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap_or_default();
    text.strip_suffix("Mi")
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn long_lived(container: &Value, spec: &Value, found: &mut Vec<String>) {
    let name = container["name"].as_str().unwrap_or_default();
    let has_program = container["command"].is_array() || container["args"].is_array();
    expect(has_program, found, format!("{name} does what its image says"));
    if ["trainer", "node"].contains(&name) {
        // The coordinator knows by its lease whether a trainer lives, and nothing that trains calls the cluster.
        let variables = container["env"].as_array().cloned().unwrap_or_default();
        let of_pod = |name: &str, path: &str| {
            let is_it =
                |variable: &Value| variable["name"] == name && variable["valueFrom"]["fieldRef"]["fieldPath"] == path;
            variables.iter().any(is_it)
        };
        expect(
            of_pod("LOCKSTEP_MEMBER", "metadata.name"),
            found,
            format!("{name} has not the name of its pod"),
        );
        expect(
            of_pod("LOCKSTEP_ADVERTISE", "status.podIP"),
            found,
            format!("{name} is not reached at its pod"),
        );
    } else {
        for probe in ["livenessProbe", "readinessProbe"] {
            expect(container[probe].is_object(), found, format!("{name} has no {probe}"));
        }
    }
    if ["trainer", "node", "worker"].contains(&name) {
        let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
        let shared = mounts
            .iter()
            .find(|mount| mount["mountPath"] == "/dev/shm")
            .cloned()
            .unwrap_or_default();
        let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
        let volume = volumes
            .iter()
            .find(|volume| volume["name"] == shared["name"])
            .cloned()
            .unwrap_or_default();
        expect(
            volume["emptyDir"]["medium"] == "Memory",
            found,
            format!("{name} has the shared memory of its engine"),
        );
        let (part, whole) = (
            mebibytes(&volume["emptyDir"]["sizeLimit"]),
            mebibytes(&container["resources"]["limits"]["memory"]),
        );
        expect(
            part < whole,
            found,
            format!("{name}: shared memory counts as memory, and is all of it"),
        );
    }
}
