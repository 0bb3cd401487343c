//! The schemas of Kubernetes for its own kinds, from the package `kubernetes-validate`, and those that controllers publish for
//! theirs, where a folder of their CustomResourceDefinitions is named. Jobs and pods in objects of controllers are held
//! against Kubernetes' own schemas either way (`kinds` takes them out).

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::kinds::{is_of_a_controller, looked_at};
use super::{documents, rendered, variants};
use crate::stage::{Stage, said};

/// The folder that holds packages of Python; `cargo xtask test` puts them there.
const PACKAGES: &str = "LOCKSTEP_PYTHON_PACKAGES";
/// A folder with the CustomResourceDefinitions of JobSet, MPIJob, TrainJob and TrainingRuntime, as YAML.
const DEFINITIONS: &str = "LOCKSTEP_K8S_DEFINITIONS";

/// Validates every document of the files that are named, unknown fields refused; prints a line for each kind.
const VALIDATOR: &str = r#"
import collections, json, os, sys
import jsonschema, kubernetes_validate, yaml
own = {}
# The one in C reads long definitions in seconds.
loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
folder = os.environ.get("LOCKSTEP_K8S_DEFINITIONS")
def strict(schema):
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed = {"type": ["integer", "string"]}
    return closed
for name in sorted(os.listdir(folder)) if folder else []:
    if not name.endswith(".yaml"):
        continue
    for definition in yaml.load_all(open(os.path.join(folder, name)), Loader=loader):
        spec = definition["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            # What every object has, and no definition says.
            schema["properties"]["metadata"] = {"type": "object"}
            own[(spec["group"] + "/" + version["name"], spec["names"]["kind"])] = schema
counts, bad, seen = collections.Counter(), 0, set()
for path in sys.argv[1:]:
    for document in yaml.load_all(open(path), Loader=loader):
        kind = (document["apiVersion"], document["kind"])
        # Most objects are the same in many files.
        text = json.dumps(document, sort_keys=True)
        if text in seen:
            continue
        seen.add(text)
        try:
            if kind in own:
                jsonschema.Draft202012Validator(own[kind]).validate(document)
            elif kind[0].split("/")[0].count(".") and not kind[0].split("/")[0].endswith(".k8s.io"):
                counts["left out: %s %s" % kind] += 1
                continue
            else:
                for version in ("1.31", "1.34"):
                    kubernetes_validate.validate(document, version, strict=True)
            counts["%s %s" % kind] += 1
        except jsonschema.ValidationError as error:
            bad += 1
            where = "/".join(str(each) for each in error.absolute_path)
            print("BAD %s: %s %s: %s: %s" % (path, kind[0], kind[1], where, error.message[:300]))
for kind, count in sorted(counts.items()):
    print(count, kind)
sys.exit(1 if bad else 0)
"#;

fn validator(packages: &std::ffi::OsStr, files: &[std::path::PathBuf]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", VALIDATOR]).args(files).env("PYTHONPATH", packages);
    command
}

#[test]
fn every_object_passes_the_published_schemas() {
    let Some(packages) = std::env::var_os(PACKAGES) else {
        println!("left out: {PACKAGES} names no folder with packages of Python (`cargo xtask test` makes one)");
        return;
    };
    if std::env::var_os(DEFINITIONS).is_none() {
        println!(
            "left out: the published schemas of JobSet, MPIJob, TrainJob and TrainingRuntime, since {DEFINITIONS} names no \
             folder with them; what is checked of these kinds is what `kinds` knows, and the Jobs and pods in them"
        );
    }
    let stage = Stage::new();
    let mut files = Vec::new();
    // With everything that a config can add to the objects.
    let more = "--set data.validation=data --set checkpoint.store=s3://bucket/a --set telemetry.otlp=http://c:4318";
    for (number, variant) in variants().iter().enumerate() {
        for (kind, words) in [
            ("plain", variant.clone()),
            ("more", format!("{variant} {more} --namespace team")),
        ] {
            let path = stage.path(&format!("{number}-{kind}.yaml"));
            let text = rendered(&stage, &words);
            std::fs::write(&path, &text).unwrap();
            files.push(path);
            for (index, inner) in handed_on(&text).iter().enumerate() {
                let path = stage.path(&format!("{number}-{kind}-{index}.yaml"));
                // JSON is YAML.
                std::fs::write(&path, inner.to_string()).unwrap();
                files.push(path);
            }
        }
    }
    let output = validator(&packages, &files).output().unwrap();
    println!("{}", said(&output));
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    for kind in [
        "batch/v1 Job",
        "apps/v1 StatefulSet",
        "policy/v1 PodDisruptionBudget",
        "networking.k8s.io/v1 NetworkPolicy",
        "v1 PodTemplate",
    ] {
        assert!(
            text.lines()
                .any(|line| line.ends_with(kind) && !line.contains("left out")),
            "{kind}: {text}"
        );
    }
    let is_left_out = |kind: &str| {
        text.lines()
            .any(|line| line.contains("left out") && line.contains(kind))
    };
    for kind in ["JobSet", "MPIJob", "TrainJob", "TrainingRuntime"] {
        assert_eq!(
            is_left_out(kind),
            std::env::var_os(DEFINITIONS).is_none(),
            "{kind}: {text}"
        );
    }
    a_wrong_one_is_found(&stage, &packages);
}

/// The Jobs and pods in the objects of controllers.
fn handed_on(text: &str) -> Vec<Value> {
    let objects = documents(text);
    let of_controllers = objects.iter().filter(|object| is_of_a_controller(object));
    of_controllers.flat_map(|object| looked_at(object).1).collect()
}

/// The check can fail: an unknown field and a wrong type are named.
fn a_wrong_one_is_found(stage: &Stage, packages: &std::ffi::OsStr) {
    let text = rendered(stage, "--overlay indexed-job");
    for (from, to, part) in [
        ("backoffLimit:", "backofLimit:", "backofLimit"),
        ("completions: 2", "completions: two", "two"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        let path = stage.path("wrong.yaml");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        // A Job needs no definitions, which take their time to read.
        let mut command = validator(packages, std::slice::from_ref(&path));
        let output = command.env_remove(DEFINITIONS).output().unwrap();
        assert!(
            !output.status.success() && said(&output).contains(part),
            "{from}: {}",
            said(&output)
        );
    }
    assert!(Path::new(&stage.path("wrong.yaml")).is_file());
}
