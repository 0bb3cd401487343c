//! Each rule finds a manifest that breaks it: a good one is changed in one place, and what is found names that.

use serde_json::{Value, json};

use super::rules::offences;
use crate::objects;
use crate::stage::Stage;

/// The value at a path of keys and indices, to be changed.
fn at<'a>(value: &'a mut Value, path: &str) -> &'a mut Value {
    value.pointer_mut(path).unwrap_or_else(|| panic!("nothing at {path}"))
}

#[test]
fn each_rule_finds_what_breaks_it() {
    const POD: &str = "/spec/template/spec";
    let stage = Stage::new();
    let good = objects(&stage, "--overlay indexed-job --tls --namespace team");
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
            "a right in the whole cluster",
        ),
        (
            place("Role", ""),
            "/rules/0/verbs".to_owned(),
            json!(["*"]),
            "more than the right to one Lease",
        ),
        (
            place("Role", ""),
            "/rules/0/resourceNames".to_owned(),
            Value::Null,
            "more than the right to one Lease",
        ),
        (
            place("RoleBinding", ""),
            "/roleRef/name".to_owned(),
            json!("admin"),
            "gives another Role",
        ),
        (
            place("RoleBinding", ""),
            "/subjects/0/name".to_owned(),
            json!("default"),
            "another account than the coordinator's",
        ),
        (
            place("RoleBinding", ""),
            "/subjects/0/namespace".to_owned(),
            json!("kube-system"),
            "another account than the coordinator's",
        ),
        (
            place("Lease", ""),
            "/kind".to_owned(),
            json!("ConfigMap"),
            "belong together",
        ),
        (
            coordinator,
            pod("/automountServiceAccountToken"),
            json!(false),
            "needs one and has none",
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
