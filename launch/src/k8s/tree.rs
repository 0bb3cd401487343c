//! The objects as a kustomize tree, for whoever lays other things over them.
//!
//! `base/` is what all overlays have in common, `coordinator/` adds what those have whose coordinator is a pod of its own, and
//! `overlays/OVERLAY/` the rest. `components/gpu`, `components/lease` and `components/tls` are the differences between the
//! objects with and without, found by comparing them: patches, and for `lease` objects of its own. Overlays take `lease` and
//! `tls` by themselves, so that nothing in the tree is open to all unless somebody takes that line away.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lockstep_config::RunConfig;
use serde_json::{Value, json};

use crate::cli::Overlay;
use crate::ending::Ending;
use crate::k8s::choice::Choice;
use crate::k8s::manifests::manifests;
use crate::k8s::settings::Settings;
use crate::k8s::yaml;

/// Files by their path in the tree.
type Files = BTreeMap<PathBuf, String>;

/// Writes the tree of a run.
///
/// # Errors
/// What does not fit, or a file that cannot be written.
pub(crate) fn write(config: &RunConfig, ranks: Option<u32>, image: Option<&str>, out: &Path) -> Result<(), Ending> {
    // All of it is made before the first file is written.
    let files = tree(config, ranks, image)?;
    for (path, text) in &files {
        let path = out.join(path);
        let failed = |error: std::io::Error| Ending::Failed(format!("cannot write {}: {error}", path.display()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        fs::write(&path, text).map_err(failed)?;
    }
    println!(
        "{} files in {}: `kubectl apply -k {}` makes the run",
        files.len(),
        out.display(),
        out.join("overlays").join(Overlay::IndexedJob.word()).display()
    );
    Ok(())
}

/// The objects of every overlay, with and without what a component adds.
struct Rendered {
    overlay: Overlay,
    name: String,
    plain: Vec<Value>,
    gpu: Vec<Value>,
    lease: Vec<Value>,
    tls: Vec<Value>,
}

fn tree(config: &RunConfig, ranks: Option<u32>, image: Option<&str>) -> Result<Files, Ending> {
    let needs_tls = config.security.tokens.is_some();
    let render = |overlay| {
        let settings = |gpu, lease, tls| {
            let choice = Choice {
                overlay,
                gpu,
                tls,
                lease,
                image: image.map(str::to_owned),
                namespace: None,
                ranks,
            };
            Settings::of(config, &choice)
        };
        Ok(Rendered {
            overlay,
            name: settings(false, false, true)?.name,
            plain: manifests(&settings(false, false, needs_tls)?),
            gpu: manifests(&settings(true, false, needs_tls)?),
            lease: manifests(&settings(false, true, needs_tls)?),
            tls: manifests(&settings(false, false, true)?),
        })
    };
    let rendered = Overlay::ALL
        .into_iter()
        .map(render)
        .collect::<Result<Vec<_>, Ending>>()?;
    let mut files = Files::new();
    let common = |of: &[&Rendered]| -> Vec<Value> {
        let in_all = |object: &&Value| of.iter().all(|other| other.plain.contains(object));
        of[0].plain.iter().filter(in_all).cloned().collect()
    };
    let base = common(&rendered.iter().collect::<Vec<_>>());
    let own: Vec<&Rendered> = rendered.iter().filter(|one| one.overlay != Overlay::Mpijob).collect();
    let coordinator: Vec<Value> = common(&own)
        .into_iter()
        .filter(|object| !base.contains(object))
        .collect();

    let name = rendered[0].name.as_str();
    place(
        &mut files,
        Path::new("base"),
        name,
        (&[], &base, &[]),
        "What all overlays have in common.",
    )?;
    place(
        &mut files,
        Path::new("coordinator"),
        name,
        (&["../base"], &coordinator, &[]),
        "What overlays have in common whose coordinator is a pod of its own.",
    )?;
    for one in &rendered {
        let (under, components): (_, &[&str]) = match one.overlay {
            Overlay::Mpijob => ("../../base", &["../../components/tls"]),
            _ => ("../../coordinator", &["../../components/lease", "../../components/tls"]),
        };
        let rest: Vec<Value> = one
            .plain
            .iter()
            .filter(|object| {
                !base.contains(object) && (one.overlay == Overlay::Mpijob || !coordinator.contains(object))
            })
            .cloned()
            .collect();
        place(
            &mut files,
            &Path::new("overlays").join(one.overlay.word()),
            name,
            (&[under], &rest, components),
            "Put ../../components/gpu first for trainers with a GPU each. Without tls everybody who reaches the\n# \
             coordinator may give orders, and only the NetworkPolicy keeps others away.",
        )?;
    }
    component(&mut files, "gpu", &rendered, |one| &one.gpu, "A GPU for each trainer.")?;
    component(
        &mut files,
        "lease",
        &rendered,
        |one| &one.lease,
        "A Lease for the coordinator, its account, and the right to that one Lease.",
    )?;
    component(
        &mut files,
        "tls",
        &rendered,
        |one| &one.tls,
        "TLS, and certificates of both sides, from the Secrets NAME-coordinator and NAME-trainer.",
    )?;
    Ok(files)
}

/// The head of every file.
fn head(config_of: &str, what: &str) -> String {
    format!(
        "# Made by `lockstep k8s kustomize` from the config of the run {config_of}: make it anew, do not change it.\n# {what}\n"
    )
}

/// A folder with objects, on top of other folders, with components.
fn place(
    files: &mut Files,
    folder: &Path,
    run: &str,
    (under, objects, components): (&[&str], &[Value], &[&str]),
    what: &str,
) -> Result<(), Ending> {
    let mut resources: Vec<String> = under.iter().map(|folder| (*folder).to_owned()).collect();
    for object in objects {
        let file = file_name(object, run);
        resources.push(file.clone());
        files.insert(folder.join(file), yaml::document(object)?);
    }
    let mut kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
    });
    if !components.is_empty() {
        kustomization["components"] = json!(components);
    }
    let text = format!("{}{}", head(run, what), yaml::document(&kustomization)?);
    files.insert(folder.join("kustomization.yaml"), text);
    Ok(())
}

/// By kind, and by what the name has besides the run's.
fn file_name(object: &Value, run: &str) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    let name = word(&object["metadata"]["name"]);
    let rest = name.strip_prefix(run).unwrap_or(&name);
    format!("{}{rest}.yaml", word(&object["kind"]))
}

fn component(
    files: &mut Files,
    name: &str,
    rendered: &[Rendered],
    with: impl Fn(&Rendered) -> &Vec<Value>,
    what: &str,
) -> Result<(), Ending> {
    let folder = Path::new("components").join(name);
    let run = &rendered[0].name;
    let mut resources: BTreeMap<String, &Value> = BTreeMap::new();
    let mut patches: BTreeMap<[String; 3], Value> = BTreeMap::new();
    for one in rendered {
        for other in with(one) {
            let key = key_of(other);
            let Some(plain) = one.plain.iter().find(|plain| key_of(plain) == key) else {
                resources.insert(file_name(other, run), other);
                continue;
            };
            let mut changes = Vec::new();
            differences(plain, other, "", &mut changes);
            if changes.is_empty() {
                continue;
            }
            let changes = json!(changes);
            if patches.get(&key).is_some_and(|known| *known != changes) {
                return Err(Ending::Failed(format!(
                    "{} {} is not changed alike in every overlay, so no component can do it",
                    key[1], key[2]
                )));
            }
            patches.insert(key, changes);
        }
    }
    let patches = patches
        .iter()
        .map(|([version, kind, name], changes)| {
            let (group, version) = version.split_once('/').unwrap_or(("", version.as_str()));
            let mut target = json!({ "version": version, "kind": kind, "name": name });
            if !group.is_empty() {
                target["group"] = json!(group);
            }
            Ok(json!({ "target": target, "patch": yaml::document(changes)? }))
        })
        .collect::<Result<Vec<Value>, Ending>>()?;
    let mut kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "patches": patches,
    });
    if !resources.is_empty() {
        kustomization["resources"] = json!(resources.keys().collect::<Vec<_>>());
    }
    for (file, object) in resources {
        files.insert(folder.join(file), yaml::document(object)?);
    }
    let text = format!("{}{}", head(run, what), yaml::document(&kustomization)?);
    files.insert(folder.join("kustomization.yaml"), text);
    Ok(())
}

/// By what an object is known: version, kind and name.
fn key_of(object: &Value) -> [String; 3] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [
        text(&object["apiVersion"]),
        text(&object["kind"]),
        text(&object["metadata"]["name"]),
    ]
}

/// What makes `to` of `from`, as operations of RFC 6902. What a list has more at its end is added behind whatever is there,
/// so that the operations of two components can follow each other.
fn differences(from: &Value, to: &Value, path: &str, changes: &mut Vec<Value>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => {
            for key in from.keys().filter(|key| !to.contains_key(*key)) {
                changes.push(json!({ "op": "remove", "path": format!("{path}/{}", escaped(key)) }));
            }
            for (key, value) in to {
                let path = format!("{path}/{}", escaped(key));
                match from.get(key) {
                    Some(before) => differences(before, value, &path, changes),
                    None => changes.push(json!({ "op": "add", "path": path, "value": value })),
                }
            }
        }
        (Value::Array(from), Value::Array(to)) => {
            for (index, (before, value)) in from.iter().zip(to).enumerate() {
                differences(before, value, &format!("{path}/{index}"), changes);
            }
            for value in to.iter().skip(from.len()) {
                changes.push(json!({ "op": "add", "path": format!("{path}/-"), "value": value }));
            }
            for index in (to.len()..from.len()).rev() {
                changes.push(json!({ "op": "remove", "path": format!("{path}/{index}") }));
            }
        }
        _ if from == to => {}
        _ => changes.push(json!({ "op": "replace", "path": path, "value": to })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(from: &Value, to: &Value) -> Value {
        let mut changes = Vec::new();
        differences(from, to, "", &mut changes);
        json!(changes)
    }

    #[test]
    fn lists_grow_at_their_end_and_keys_are_escaped() {
        let from = json!({ "a": [1, 2], "b": { "c": "x" }, "gone": 0 });
        let to = json!({ "a": [1, 3, 4], "b": { "c": "y", "d/e": {} } });
        let expected = json!([
            { "op": "remove", "path": "/gone" },
            { "op": "replace", "path": "/a/1", "value": 3 },
            { "op": "add", "path": "/a/-", "value": 4 },
            { "op": "replace", "path": "/b/c", "value": "y" },
            { "op": "add", "path": "/b/d~1e", "value": {} },
        ]);
        assert_eq!(changes(&from, &to), expected);
        assert_eq!(changes(&from, &from), json!([]));
        assert_eq!(
            changes(&json!([1, 2, 3]), &json!([1])),
            json!([{ "op": "remove", "path": "/2" }, { "op": "remove", "path": "/1" }])
        );
    }
}
