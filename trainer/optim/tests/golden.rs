//! Every step of our optimisers against other people's: torch's AdamW, SGD and Muon, and momo-opt's Momo and MomoAdam.
//!
//! Data flows: golden/cases/NAME.toml and the recorded inputs that its first line names → `replay` → movements of each
//! tensor from one kept step to the next, compared with those of NAME.out.safetensors (golden/make.py wrote them). Only
//! some steps are kept; a movement over several steps holds each of them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use lockstep_optim::replay::replay;
use safetensors::{Dtype, SafeTensors};
use toml::{Table, Value};

/// The largest distance of a movement, and of an effective learning rate, as a part of theirs.
const TOLERANCE: f64 = 2e-4;
/// The same in bf16: torch's products and ours round at the same places, but a sum that lies on the border of two bf16
/// numbers may fall to either side, and small singular values amplify that.
const TOLERANCE_BF16: f64 = 3e-2;

/// Tensors by name, float32 values as float64.
type Tensors = BTreeMap<String, Vec<f64>>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases")
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}; make it with golden/make.py", path.display()))
}

fn tensors(bytes: &[u8]) -> Tensors {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let values = |data: &[u8]| {
        let floats = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        floats.map(f64::from).collect()
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            assert_eq!(view.dtype(), Dtype::F32, "{name}");
            (name, values(view.data()))
        })
        .collect()
}

/// `‖ours − theirs‖ / ‖theirs‖`: 0 if both are zero, infinite if only theirs is.
fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut ours.iter().zip(theirs).map(|(a, b)| a - b));
    if apart == 0.0 {
        return 0.0;
    }
    apart / norm(&mut theirs.iter().copied())
}

fn movement(from: &[f64], to: &[f64]) -> Vec<f64> {
    assert_eq!(from.len(), to.len());
    from.iter().zip(to).map(|(from, to)| to - from).collect()
}

/// A case with its files.
struct Case {
    name: String,
    toml: String,
    inputs: Vec<u8>,
    theirs: Tensors,
}

impl Case {
    fn read(path: &Path) -> Case {
        let toml = String::from_utf8(read(path)).unwrap();
        let inputs = toml.lines().next().and_then(|line| line.strip_prefix("# inputs: "));
        let inputs = inputs.unwrap_or_else(|| panic!("{}: the first line names no inputs", path.display()));
        Case {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            inputs: read(&path.with_file_name(inputs)),
            theirs: tensors(&read(&path.with_extension("out.safetensors"))),
            toml,
        }
    }

    fn optimizer(&self) -> Table {
        let table: Table = self.toml.parse().unwrap();
        table["optimizer"].as_table().unwrap().clone()
    }

    fn method(&self) -> String {
        self.optimizer()["method"].as_str().unwrap().to_owned()
    }

    /// How far a movement may be.
    fn tolerance(&self) -> f64 {
        let optimizer = self.optimizer();
        let precision = optimizer.get("polar").and_then(|polar| polar.get("precision"));
        match precision.and_then(Value::as_str) {
            Some("bf16") => TOLERANCE_BF16,
            _ => TOLERANCE,
        }
    }

    /// The steps after which parameters are kept, in order.
    fn kept(&self) -> BTreeSet<usize> {
        let names = self.theirs.keys().filter_map(|name| name.strip_prefix("param."));
        names
            .map(|name| name.split_once('.').unwrap().0.parse().unwrap())
            .collect()
    }

    /// What is compared, and how far apart it is.
    fn distances(&self) -> Vec<(String, f64)> {
        let origin = format!("{}.toml", self.name);
        let ours = replay(&self.toml, &origin, &self.inputs).unwrap_or_else(|error| panic!("{error}"));
        let (ours, inputs) = (tensors(&ours), tensors(&self.inputs));
        let steps = inputs["loss"].len();
        let kept = self.kept();
        assert_eq!(
            kept.last(),
            Some(&(steps - 1)),
            "{}: the last step is not kept",
            self.name
        );
        let mut distances = Vec::new();
        for (start, initial) in &inputs {
            let Some(tensor) = start.strip_prefix("param.") else {
                continue;
            };
            let (mut our_last, mut their_last) = (initial, initial);
            for step in &kept {
                let name = format!("param.{step}.{tensor}");
                let (our_next, their_next) = (&ours[&name], &self.theirs[&name]);
                let (our, their) = (movement(our_last, our_next), movement(their_last, their_next));
                distances.push((format!("the movement to {name}"), distance(&our, &their)));
                (our_last, their_last) = (our_next, their_next);
            }
        }
        if let Some(rates) = self.theirs.get("effective_lr") {
            assert_eq!(rates.len(), steps, "{}: a rate for each step", self.name);
            for (step, (our, their)) in ours["effective_lr"].iter().zip(rates).enumerate() {
                distances.push((format!("the effective lr of step {step}"), distance(&[*our], &[*their])));
            }
        }
        distances
    }
}

/// All cases. Files without a case, and cases without a file, fail.
fn cases() -> Vec<Case> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    let (cases, files): (Vec<PathBuf>, Vec<PathBuf>) = names
        .into_iter()
        .partition(|path| path.extension() == Some(OsStr::new("toml")));
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(case) = name.strip_suffix(".out.safetensors") {
            let toml = path.with_file_name(format!("{case}.toml"));
            assert!(cases.contains(&toml), "{name} belongs to no case; take it away");
        }
    }
    cases.iter().map(|path| Case::read(path)).collect()
}

#[test]
fn there_are_cases_of_every_method_that_others_have() {
    let cases = cases();
    let methods: BTreeSet<String> = cases.iter().map(Case::method).collect();
    let expected = ["adamw", "momo", "momo-adam", "muon", "sgd"].map(str::to_owned);
    assert_eq!(methods, BTreeSet::from(expected));
    for case in &cases {
        let has_rates = case.theirs.contains_key("effective_lr");
        assert_eq!(has_rates, case.method().starts_with("momo"), "{}", case.name);
    }
}

#[test]
fn every_step_is_that_of_the_other_implementation() {
    let mut wrong = Vec::new();
    for case in cases() {
        let distances = case.distances();
        let (what, worst) = distances.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        println!("{:28} at most {worst:.1e} ({what})", case.name);
        let tolerance = case.tolerance();
        for (what, distance) in &distances {
            // A distance that is no number fails too.
            if distance.is_nan() || *distance > tolerance {
                wrong.push(format!(
                    "{}: {what} is {distance:.1e} away, allowed is {tolerance:.0e}",
                    case.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
