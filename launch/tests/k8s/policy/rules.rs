//! The rules about objects: what each may be, and how they belong together.

use serde_json::{Value, json};

use super::pods::of_pod;
use crate::under;

/// Every place that breaks a rule.
pub(super) fn offences(objects: &[Value]) -> Vec<String> {
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
    rights(objects, &mut found);
    found
}

pub(super) fn expect(holds: bool, found: &mut Vec<String>, offence: impl Into<String>) {
    if !holds {
        found.push(offence.into());
    }
}

fn of_object(object: &Value, found: &mut Vec<String>) {
    let kind = object["kind"].as_str().unwrap_or_default();
    expect(
        !kind.starts_with("ClusterRole"),
        found,
        format!("{kind}: nothing needs a right in the whole cluster"),
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

/// The one right that there may be: the coordinator's own account may read and renew its own Lease, which is there.
fn rights(objects: &[Value], found: &mut Vec<String>) {
    let of = |kind: &str| {
        objects
            .iter()
            .filter(|object| object["kind"] == kind)
            .collect::<Vec<_>>()
    };
    let leases = of("Lease");
    for role in of("Role") {
        let its = leases.first().map_or(&Value::Null, |lease| &lease["metadata"]["name"]);
        let one = json!([{
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [its],
            "verbs": ["get", "update"],
        }]);
        expect(
            role["rules"] == one && leases.len() == 1,
            found,
            "a Role gives more than the right to one Lease",
        );
    }
    for binding in of("RoleBinding") {
        let role =
            json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": binding["metadata"]["name"] });
        expect(binding["roleRef"] == role, found, "a RoleBinding gives another Role");
        let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
        let is_coordinators = |subject: &Value| {
            subject["kind"] == "ServiceAccount"
                && subject["name"]
                    .as_str()
                    .is_some_and(|name| name.ends_with("-coordinator"))
                && subject["namespace"] == binding["metadata"]["namespace"]
        };
        expect(
            subjects.len() == 1 && subjects.iter().all(is_coordinators),
            found,
            "a right is given to another account than the coordinator's",
        );
    }
    let counts = ["Lease", "Role", "RoleBinding"].map(|kind| of(kind).len());
    expect(
        counts == [0; 3] || counts == [1; 3],
        found,
        format!("a Lease, a Role and a RoleBinding belong together, and there are {counts:?}"),
    );
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
