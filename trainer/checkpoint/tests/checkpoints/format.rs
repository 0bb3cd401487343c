//! The files are what docs/checkpoints.md says, so that other programs can read them.

use lockstep_checkpoint::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use safetensors::{Dtype, SafeTensors};

use crate::scene::Scene;

fn scene() -> Scene {
    let tensors = vec![
        TensorEntry::new("layers.0.up", &[4, 3], TensorKind::Hidden, &["master", "momentum"]),
        TensorEntry::new("embedding", &[2, BLOCK], TensorKind::Other, &["master"]),
    ];
    Scene { seed: 41, tensors }
}

#[test]
fn a_part_is_a_safetensors_file_of_its_hash() {
    let scene = scene();
    let store = Store::memory(Limits::default()).unwrap();
    let hidden = scene.values(1, 0, 0, 0..12);
    let half = scene.values(1, 1, 0, BLOCK..2 * BLOCK);
    let mut part = Part::new();
    part.add(&scene.tensors[0], "master", 0..12, &hidden).unwrap();
    part.add(&scene.tensors[1], "master", BLOCK..2 * BLOCK, &half).unwrap();
    let entry = store.write(&part.seal().unwrap()).unwrap();
    let bytes = store.part_bytes(&entry).unwrap();
    assert_eq!(bytes.len() as u64, entry.bytes);
    assert_eq!(entry.file(), format!("parts/{}.safetensors", ContentHash::of(&bytes)));

    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(
        metadata.metadata().as_ref().unwrap()["format"],
        "lockstep-checkpoint-part"
    );
    for (name, shape, values) in [
        ("layers.0.up/master[0:12]", vec![4, 3], &hidden),
        ("embedding/master[65536:131072]", vec![BLOCK], &half),
    ] {
        let tensor = file.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, shape.as_slice()));
        let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(tensor.data(), expected);
    }
    for block in &entry.blocks {
        let start = block.offset as usize;
        let length = 4 * (block.elements[1] - block.elements[0]);
        assert_eq!(ContentHash::of(&bytes[start..start + length]), block.hash);
    }
}

#[test]
fn a_part_is_equal_in_whatever_order_it_was_made_and_an_empty_one_is_a_file_too() {
    let scene = scene();
    let values: Vec<_> = [0, 1].map(|a| scene.values(1, 0, a, 0..12)).into();
    let part = |order: [usize; 2]| {
        let mut part = Part::new();
        for a in order {
            part.add(&scene.tensors[0], ["master", "momentum"][a], 0..12, &values[a])
                .unwrap();
        }
        part.seal().unwrap().entry().clone()
    };
    assert_eq!(part([0, 1]), part([1, 0]));
    let empty = Part::new().seal().unwrap();
    let mut bytes = vec![0; 4096];
    let length = empty.copy(0, &mut bytes);
    assert_eq!(length as u64, empty.entry().bytes);
    assert!(SafeTensors::deserialize(&bytes[..length]).unwrap().is_empty());
}

#[test]
fn a_manifest_is_one_line_of_json_that_carries_the_hash_of_its_body() {
    let scene = scene();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path(), Limits::default()).unwrap();
    let name = scene.write(&store, 7, 2, &mut StdRng::seed_from_u64(1));
    let text = std::fs::read_to_string(folder.path().join("step-7/term-1-generation-1.json")).unwrap();
    assert_eq!(name.file(), "step-7/term-1-generation-1.json");
    let body = text.find("\"body\":").unwrap() + "\"body\":".len();
    let hash = ContentHash::of(&text.as_bytes()[body..text.len() - 2]).to_string();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["format"], "lockstep-checkpoint");
    assert_eq!(json["version"], 1);
    assert_eq!(json["hash"], hash);
    let run = &json["body"]["run"];
    assert_eq!(run["cursor"], 7 * 32);
    assert_eq!(run["words"]["momo.rho"], "ffffffffffffffff");
    assert_eq!(json["body"]["tensors"][0]["kind"], "hidden");
    let blocks: usize = json["body"]["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["blocks"].as_array().unwrap().len())
        .sum();
    assert_eq!(blocks, 4);
    let mut keys: Vec<_> = run.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "config_hash",
            "config_toml",
            "cursor",
            "generation",
            "parameter_hash",
            "run_id",
            "schedule_version",
            "step",
            "term",
            "words"
        ]
    );
}
