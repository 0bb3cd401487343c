//! What every manifest keeps to, whatever the overlay.
//!
//! - `rules`: the rules about objects, and how they belong together
//! - `pods`: those about pods and their containers
//! - `broken`: each rule is shown to find a manifest that breaks it

mod broken;
mod pods;
mod rules;

use serde_json::json;

use super::{OVERLAYS, find, objects, variants};
use crate::stage::Stage;

#[test]
fn every_overlay_keeps_every_rule() {
    let stage = Stage::new();
    for variant in variants() {
        for namespace in ["", " --namespace team"] {
            let found = rules::offences(&objects(&stage, &format!("{variant}{namespace}")));
            assert!(found.is_empty(), "{variant}{namespace}: {found:#?}");
        }
    }
}

#[test]
fn the_exit_codes_are_what_they_mean() {
    let stage = Stage::new();
    let action = |overlay: &str, part: &str, code: u8| -> String {
        let objects = objects(&stage, &format!("--overlay {overlay}"));
        let job = find(&objects, "Job", part);
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
