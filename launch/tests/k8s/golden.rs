//! The tree in `k8s/` is what the program makes of an example, and kustomize makes of it what `render` prints.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{OVERLAYS, documents};
use crate::stage::{Stage, said};

/// Whose tree is in the repository, and how it is made anew, in the repository's root. The size of the vocabulary is said,
/// since the example's data may not be prepared.
const MADE_BY: &str = "examples/shakespeare.toml -n 3 --set model.vocab=256";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file under a folder, by its path in it.
fn files(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let text = fs::read_to_string(&path).unwrap();
                    found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
                }
            }
        }
    }
    found
}

#[test]
fn the_tree_of_the_repository_is_made_from_an_example() {
    let stage = Stage::new();
    let out = stage.path("tree");
    let words = format!("k8s kustomize {MADE_BY} --out {}", out.display());
    let output = stage.command(&words).current_dir(repository()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let made = files(&out);
    let mut kept = files(&repository().join("k8s"));
    kept.remove(Path::new("Containerfile")).expect("the file of the image");
    let again = format!("make it anew: lockstep k8s kustomize {MADE_BY} --out k8s");
    assert_eq!(
        kept.keys().collect::<Vec<_>>(),
        made.keys().collect::<Vec<_>>(),
        "{again}"
    );
    for (path, text) in &made {
        assert!(kept[path] == *text, "{} is another one; {again}", path.display());
    }
}

#[test]
fn every_file_of_the_tree_is_named_by_a_kustomization() {
    let root = repository().join("k8s");
    for (path, text) in files(&root) {
        if path.file_name().unwrap() != "kustomization.yaml" {
            continue;
        }
        let kustomization = documents(&text).remove(0);
        let folder = root.join(path.parent().unwrap());
        let list = |key: &str| kustomization[key].as_array().cloned().unwrap_or_default();
        let mut named: Vec<PathBuf> = Vec::new();
        for entry in list("resources").iter().chain(&list("components")) {
            let place = folder.join(entry.as_str().unwrap());
            assert!(place.exists(), "{} names {}", path.display(), place.display());
            named.push(place);
        }
        let there = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        for file in there.filter(|file| file.is_file() && file.file_name().unwrap() != "kustomization.yaml") {
            assert!(named.contains(&file), "nobody names {}", file.display());
        }
        assert_eq!(text.contains("kind: Component"), path.starts_with("components"));
    }
}

#[test]
fn kustomize_makes_of_the_tree_what_render_prints() {
    if Command::new("kubectl").args(["kustomize", "--help"]).output().is_err() {
        println!("left out: there is no kubectl, whose kustomize would put the tree together");
        return;
    }
    let stage = Stage::new();
    let tree = stage.path("tree");
    let words = format!("k8s kustomize {MADE_BY} --out {}", tree.display());
    let output = stage.command(&words).current_dir(repository()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for overlay in OVERLAYS {
        for (components, flags) in [
            (&["gpu", "tls"][..], "--gpu --tls"),
            (&["tls"], "--tls"),
            (&["gpu"], "--gpu --set security.insecure_bind=true"),
            (&[], "--set security.insecure_bind=true"),
            (&["lease", "tls"], "--tls --namespace team"),
            (&["gpu", "lease", "tls"], "--gpu --tls --namespace team"),
        ] {
            if overlay == "mpijob" && components.contains(&"lease") {
                continue;
            }
            let folder = tree.join("overlays").join(overlay);
            let file = folder.join("kustomization.yaml");
            let shipped = fs::read_to_string(&file).unwrap();
            let lines: String = components
                .iter()
                .map(|name| format!("- ../../components/{name}\n"))
                .collect();
            // As a person would edit it: `components` is the first list of the file.
            let (before, after) = shipped.split_once("components:\n").unwrap();
            let (_, rest) = after.split_once("kind:").unwrap();
            let listed = if lines.is_empty() {
                String::new()
            } else {
                format!("components:\n{lines}")
            };
            let namespace = match flags.contains("--namespace") {
                true => "namespace: team\n",
                false => "",
            };
            fs::write(&file, format!("{before}{listed}{namespace}kind:{rest}")).unwrap();
            let made = Command::new("kubectl").arg("kustomize").arg(&folder).output().unwrap();
            assert!(made.status.success(), "{overlay} {components:?}: {}", said(&made));
            fs::write(&file, shipped).unwrap();

            let words = format!("k8s render {MADE_BY} --overlay {overlay} {flags}");
            let printed = stage.command(&words).current_dir(repository()).output().unwrap();
            assert_eq!(printed.status.code(), Some(0), "{}", said(&printed));
            let by_kustomize = sorted(&made.stdout);
            let by_render = sorted(&printed.stdout);
            assert_eq!(
                by_kustomize.keys().collect::<Vec<_>>(),
                by_render.keys().collect::<Vec<_>>()
            );
            for (name, object) in &by_render {
                assert_eq!(&by_kustomize[name], object, "{overlay} {components:?}: {name}");
            }
        }
    }
}

/// The objects of a stream by kind and name; kustomize has an order of its own.
fn sorted(stream: &[u8]) -> BTreeMap<String, Value> {
    let objects = documents(std::str::from_utf8(stream).unwrap());
    let key = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    objects.into_iter().map(|object| (key(&object), object)).collect()
}
