//! Data that is missing, mutilated, of another version, or does not fit.

use std::fs;

use crate::ward::Ward;

#[test]
fn one_byte_flipped_a_shard_cut_off_and_a_shard_missing() {
    let ward = Ward::new();
    let shard = ward.path("data/train-00000.shard");
    let good = fs::read(&shard).unwrap();
    let mut edited = good.clone();
    edited[500] ^= 1;
    fs::write(&shard, edited).unwrap();
    ward.examine("run.toml -n 1")
        .found("data-damaged", &["train-00000.shard", "BLAKE3"]);
    fs::write(&shard, &good[..good.len() - 100]).unwrap();
    ward.examine("run.toml -n 1")
        .found("data-damaged", &["train-00000.shard", "truncated"]);
    fs::remove_file(&shard).unwrap();
    ward.examine("run.toml -n 1")
        .found("data-missing", &["train-00000.shard", "No such file"]);
    fs::write(&shard, good).unwrap();
    assert_eq!(ward.examine("run.toml -n 1 --deep").ids(), [""; 0], "as it was");
}

#[test]
fn a_manifest_that_was_edited_or_is_of_another_version_and_no_manifest() {
    let ward = Ward::new();
    let manifest = ward.stage.read("data/manifest.json");
    let write = |text: &str| fs::write(ward.path("data/manifest.json"), text).unwrap();
    write(&manifest.replacen("\"tokens\": ", "\"tokens\": 1", 1));
    ward.examine("run.toml -n 1")
        .found("data-damaged", &["manifest.json", "do not add up"]);
    write(&manifest.replace("\"version\": 1", "\"version\": 2"));
    ward.examine("run.toml -n 1")
        .found("data-version", &["manifest.json", "version 2"]);
    fs::remove_file(ward.path("data/manifest.json")).unwrap();
    ward.examine("run.toml -n 1")
        .found("data-missing", &["no data folder", "lockstep data prepare"]);
    ward.examine("run.toml -n 1 --set data.path=absent")
        .found("data-missing", &["absent"]);
}

#[test]
fn data_that_does_not_fit_the_config() {
    let ward = Ward::new();
    ward.examine("run.toml -n 1 --set model.vocab=255")
        .found("data-unfit", &["model.vocab is 255", "256"]);
    let words = "run.toml -n 1 --set data.sequence_length=100000";
    let report = ward.examine(words);
    report.found("data-unfit", &["data.sequence_length = 100000"]);
    let output = ward
        .stage
        .lockstep("data prepare --tokenizer train:300 --out other text.txt");
    assert!(output.status.success(), "{}", crate::stage::said(&output));
    ward.examine("run.toml -n 1 --set data.validation=other")
        .found("data-unfit", &["another tokenizer"]);
}

#[test]
fn a_clock_that_is_behind_the_files() {
    let ward = Ward::new();
    let manifest = fs::File::options()
        .append(true)
        .open(ward.path("data/manifest.json"))
        .unwrap();
    let tomorrow = std::time::SystemTime::now() + std::time::Duration::from_secs(86_400);
    manifest.set_modified(tomorrow).unwrap();
    ward.examine("run.toml -n 1")
        .found("clock-behind", &["newer than this machine's clock"]);
}
