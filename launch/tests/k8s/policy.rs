//! What every manifest keeps to, whatever the overlay. Each rule is shown to find a manifest that breaks it.

use serde_json::{Value, json};

use super::{OVERLAYS, objects, under, variants};
use crate::stage::Stage;

/// Every place that breaks a rule.
fn offences(objects: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    let mut templates = Vec::new();
    for object in objects {
        under(object, "template", &mut templates);
        of_object(object, &mut found);
        jobs(object, &mut found);
    }
    // A JobSet's template of a Job holds one of a pod.
    let pods: Vec<&Value> = templates
        .into_iter()
        .filter(|template| template["spec"]["containers"].is_array())
        .collect();
    if pods.is_empty() {
        found.push("there is no pod at all".to_owned());
    }
    for pod in pods {
        of_pod(&pod["spec"], &mut found);
        of_network(&pod["metadata"]["labels"], objects, &mut found);
    }
    disruptions(objects, &mut found);
    found
}

fn expect(holds: bool, found: &mut Vec<String>, offence: impl Into<String>) {
    if !holds {
        found.push(offence.into());
    }
}

fn of_object(object: &Value, found: &mut Vec<String>) {
    let kind = object["kind"].as_str().unwrap_or_default();
    let has_rights = ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"].contains(&kind);
    expect(
        !has_rights,
        found,
        format!("{kind}: nothing in a pod calls the cluster, so nothing needs a right"),
    );
    if kind == "ServiceAccount" {
        expect(
            object["automountServiceAccountToken"] == false,
            found,
            "an account's token is mounted",
        );
    }
    if kind == "Service" {
        expect(
            object["spec"]["clusterIP"] == "None",
            found,
            "a Service is not headless",
        );
    }
    expect(kind != "Secret", found, "a secret is printed");
    let text = object.to_string();
    expect(
        !text.contains("PRIVATE KEY") && !text.contains("lst_"),
        found,
        "a secret stands in an object",
    );
    let is_ledger = object["metadata"]["name"]
        .as_str()
        .is_some_and(|name| name.ends_with("-ledger"));
    if kind == "PersistentVolumeClaim" && is_ledger {
        expect(
            object["spec"]["accessModes"] == json!(["ReadWriteOncePod"]),
            found,
            "two pods could have the ledger",
        );
    }
}

/// Jobs, wherever they are: they have a limit of failures.
fn jobs(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if map.contains_key("backoffLimit") && map.contains_key("template") {
                let rules = value["podFailurePolicy"]["rules"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let first = rules.first().cloned().unwrap_or_default();
                let lets_go = first["action"] == "Ignore" && first["onPodConditions"][0]["type"] == "DisruptionTarget";
                expect(lets_go, found, "a pod that its node lets go counts as a failure");
                let ends = |code: u8| {
                    rules
                        .iter()
                        .any(|rule| rule["action"] == "FailJob" && rule["onExitCodes"]["values"] == json!([code]))
                };
                expect(ends(2), found, "bad input is tried again");
                let never = value["template"]["spec"]["restartPolicy"] == "Never";
                expect(never, found, "a policy for failures needs restartPolicy Never");
            }
            map.values().for_each(|value| jobs(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| jobs(value, found)),
        _ => {}
    }
}

fn of_pod(spec: &Value, found: &mut Vec<String>) {
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
    expect(
        spec["automountServiceAccountToken"] == false,
        found,
        "a pod has a token of the cluster",
    );
    expect(
        spec["enableServiceLinks"] == false,
        found,
        "other Services are in a pod's environment",
    );
    let account = spec["serviceAccountName"].as_str().unwrap_or("default");
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

/// Whether labels have all of a selector's.
fn selects(selector: &Value, labels: &Value) -> bool {
    selector
        .as_object()
        .is_some_and(|map| map.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

fn of_network(labels: &Value, objects: &[Value], found: &mut Vec<String>) {
    let is_held = objects.iter().any(|object| {
        object["kind"] == "NetworkPolicy"
            && selects(&object["spec"]["podSelector"]["matchLabels"], labels)
            && object["spec"]["policyTypes"] == json!(["Ingress", "Egress"])
            && object["spec"]["ingress"]
                .as_array()
                .is_some_and(|rules| rules.iter().all(|rule| rule["from"].is_array()))
    });
    expect(
        is_held,
        found,
        format!("no NetworkPolicy holds others away from {labels}"),
    );
}

fn disruptions(objects: &[Value], found: &mut Vec<String>) {
    let budget = objects.iter().find(|object| object["kind"] == "PodDisruptionBudget");
    let least = budget.and_then(|budget| budget["spec"]["minAvailable"].as_u64());
    let mut numbers = Vec::new();
    for key in ["parallelism", "replicas", "numNodes"] {
        objects.iter().for_each(|object| under(object, key, &mut numbers));
    }
    let trainers = numbers.iter().filter_map(|number| number.as_u64()).max().unwrap_or(0);
    expect(
        least.is_some_and(|least| least < trainers),
        found,
        "a node can never be emptied, or is emptied at once",
    );
}

#[test]
fn every_overlay_keeps_every_rule() {
    let stage = Stage::new();
    for variant in variants() {
        let found = offences(&objects(&stage, &variant));
        assert!(found.is_empty(), "{variant}: {found:#?}");
    }
}

/// The value at a path of keys and indices, to be changed.
fn at<'a>(value: &'a mut Value, path: &str) -> &'a mut Value {
    value.pointer_mut(path).unwrap_or_else(|| panic!("nothing at {path}"))
}

#[test]
fn each_rule_finds_what_breaks_it() {
    const POD: &str = "/spec/template/spec";
    let stage = Stage::new();
    let good = objects(&stage, "--overlay indexed-job --tls");
    assert_eq!(offences(&good), Vec::<String>::new());
    let place = |kind: &str, end: &str| {
        let is_it =
            |object: &Value| object["kind"] == kind && object["metadata"]["name"].as_str().unwrap().ends_with(end);
        good.iter()
            .position(is_it)
            .unwrap_or_else(|| panic!("no {kind} …{end}"))
    };
    let (trainers, coordinator) = (place("Job", "-trainer"), place("Job", "-coordinator"));
    let container = |rest: &str| format!("{POD}/containers/0{rest}");
    let pod = |rest: &str| format!("{POD}{rest}");
    // An object, where in it, the value put there (null: taken away), and what is found.
    let broken: Vec<(usize, String, Value, &str)> = vec![
        (
            trainers,
            pod("/securityContext/runAsNonRoot"),
            json!(false),
            "may run as root",
        ),
        (trainers, pod("/securityContext/runAsUser"), json!(0), "names no user"),
        (
            trainers,
            pod("/securityContext/seccompProfile/type"),
            json!("Unconfined"),
            "no seccomp profile",
        ),
        (
            trainers,
            pod("/automountServiceAccountToken"),
            json!(true),
            "a token of the cluster",
        ),
        (trainers, pod("/enableServiceLinks"), json!(true), "other Services"),
        (
            trainers,
            pod("/serviceAccountName"),
            json!("default"),
            "the default account",
        ),
        (trainers, pod("/hostNetwork"), json!(true), "hostNetwork"),
        (trainers, pod("/hostPID"), json!(true), "hostPID"),
        (trainers, pod("/hostIPC"), json!(true), "hostIPC"),
        (
            trainers,
            pod("/terminationGracePeriodSeconds"),
            json!(1),
            "killed before it can leave",
        ),
        (
            trainers,
            pod("/volumes/0"),
            json!({ "name": "data", "hostPath": { "path": "/" } }),
            "a folder of the node",
        ),
        (
            trainers,
            pod("/volumes/2/emptyDir/sizeLimit"),
            Value::Null,
            "may fill the node",
        ),
        (
            trainers,
            pod("/volumes/4/secret/defaultMode"),
            json!(0o444),
            "reads the secret",
        ),
        (
            trainers,
            container("/securityContext/allowPrivilegeEscalation"),
            json!(true),
            "gain privileges",
        ),
        (
            trainers,
            container("/securityContext/readOnlyRootFilesystem"),
            json!(false),
            "change its image",
        ),
        (
            trainers,
            container("/securityContext/capabilities"),
            json!({ "drop": ["ALL"], "add": ["SYS_ADMIN"] }),
            "capabilities",
        ),
        (
            trainers,
            container("/securityContext/capabilities"),
            json!({}),
            "capabilities",
        ),
        (
            trainers,
            container("/securityContext/privileged"),
            json!(true),
            "privileged",
        ),
        (trainers, container("/image"), json!("lockstep"), "latest"),
        (
            trainers,
            container("/image"),
            json!("r.example.org:5000/lockstep:latest"),
            "latest",
        ),
        (
            trainers,
            container("/resources/requests/cpu"),
            Value::Null,
            "no cpu in its requests",
        ),
        (
            trainers,
            container("/resources/limits/memory"),
            Value::Null,
            "no memory in its limits",
        ),
        (
            trainers,
            container("/resources/limits/memory"),
            json!("999999Mi"),
            "more memory than",
        ),
        (
            trainers,
            container("/env/0"),
            json!({ "name": "LOCKSTEP_MEMBER", "value": "a" }),
            "the name of its pod",
        ),
        (
            trainers,
            container("/env/1"),
            json!({ "name": "LOCKSTEP_ADVERTISE", "value": "::1" }),
            "reached at its pod",
        ),
        (
            trainers,
            pod("/volumes/2/emptyDir/medium"),
            Value::Null,
            "the shared memory of its engine",
        ),
        (
            trainers,
            pod("/volumes/2/emptyDir/sizeLimit"),
            json!("999999Mi"),
            "all of it",
        ),
        (
            trainers,
            pod("/initContainers/0/securityContext/readOnlyRootFilesystem"),
            json!(false),
            "change its image",
        ),
        (
            trainers,
            pod("/restartPolicy"),
            json!("OnFailure"),
            "restartPolicy Never",
        ),
        (
            trainers,
            "/spec/podFailurePolicy/rules/0".to_owned(),
            json!({ "action": "Count" }),
            "counts as a failure",
        ),
        (
            trainers,
            "/spec/podFailurePolicy/rules/1".to_owned(),
            json!({ "action": "Count" }),
            "bad input is tried again",
        ),
        (
            trainers,
            "/spec/template/metadata/labels".to_owned(),
            json!({ "a": "b" }),
            "no NetworkPolicy",
        ),
        (
            coordinator,
            container("/livenessProbe"),
            Value::Null,
            "no livenessProbe",
        ),
        (
            coordinator,
            container("/readinessProbe"),
            Value::Null,
            "no readinessProbe",
        ),
        (
            place("ServiceAccount", ""),
            "/automountServiceAccountToken".to_owned(),
            json!(true),
            "an account's token",
        ),
        (
            place("Service", ""),
            "/spec/clusterIP".to_owned(),
            Value::Null,
            "not headless",
        ),
        (
            place("ConfigMap", ""),
            "/data/run.toml".to_owned(),
            json!("lst_0"),
            "a secret stands",
        ),
        (
            place("ConfigMap", ""),
            "/kind".to_owned(),
            json!("Secret"),
            "a secret is printed",
        ),
        (
            place("ConfigMap", ""),
            "/kind".to_owned(),
            json!("ClusterRole"),
            "needs a right",
        ),
        (
            place("PersistentVolumeClaim", "-ledger"),
            "/spec/accessModes".to_owned(),
            json!(["ReadWriteMany"]),
            "two pods",
        ),
        (
            place("NetworkPolicy", "-trainer"),
            "/spec/policyTypes".to_owned(),
            json!(["Ingress"]),
            "no NetworkPolicy",
        ),
        (
            place("NetworkPolicy", "-trainer"),
            "/spec/ingress".to_owned(),
            json!([{}]),
            "no NetworkPolicy",
        ),
        (
            place("PodDisruptionBudget", ""),
            "/spec/minAvailable".to_owned(),
            json!(2),
            "never be emptied",
        ),
    ];
    for (index, path, value, part) in broken {
        let mut objects = good.clone();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = at(&mut objects[index], parent);
        match (parent, value) {
            (Value::Object(map), Value::Null) => drop(map.remove(key)),
            (Value::Object(map), value) => drop(map.insert(key.to_owned(), value)),
            (Value::Array(list), value) => list[key.parse::<usize>().unwrap()] = value,
            (other, _) => panic!("{path}: {other}"),
        }
        let found = offences(&objects);
        assert!(
            found.iter().any(|offence| offence.contains(part)),
            "{path}: {part:?} is not among {found:#?}"
        );
    }
    // A program of its own is needed even where arguments are not.
    let mut objects = good.clone();
    let first = at(&mut objects[trainers], &container("")).as_object_mut().unwrap();
    first.remove("command");
    first.remove("args");
    assert!(
        offences(&objects)
            .iter()
            .any(|offence| offence.contains("does what its image says"))
    );
    assert!(offences(&[]).iter().any(|offence| offence.contains("no pod at all")));
}

#[test]
fn the_exit_codes_are_what_they_mean() {
    let stage = Stage::new();
    let action = |overlay: &str, part: &str, code: u8| -> String {
        let objects = objects(&stage, &format!("--overlay {overlay}"));
        let job = super::find(&objects, "Job", part);
        let rules = job["spec"]["podFailurePolicy"]["rules"].as_array().unwrap().clone();
        let rule = rules.iter().find(|rule| rule["onExitCodes"]["values"] == json!([code]));
        rule.map_or("none", |rule| rule["action"].as_str().unwrap()).to_owned()
    };
    for overlay in ["indexed-job", "elastic"] {
        assert_eq!(
            action(overlay, "-trainer", 2),
            "FailJob",
            "no other start will do better"
        );
        assert_eq!(
            action(overlay, "-trainer", 4),
            "Count",
            "another process is wanted, and not for ever"
        );
        assert_eq!(action(overlay, "-trainer", 1), "none", "a failure is a failure");
    }
    assert_eq!(
        action("indexed-job", "-coordinator", 3),
        "FailJob",
        "a stopped run is not begun again"
    );
    assert_eq!(action("indexed-job", "-trainer", 3), "FailJob");
    assert_eq!(
        action("elastic", "-trainer", 3),
        "Ignore",
        "trainers leave in order with this code"
    );
    for overlay in OVERLAYS {
        let objects = objects(&stage, &format!("--overlay {overlay}"));
        let stays = objects.iter().any(|object| object.to_string().contains("--stay"));
        assert_eq!(
            stays,
            overlay == "elastic",
            "{overlay}: only a StatefulSet would start a coordinator for ever"
        );
    }
}
