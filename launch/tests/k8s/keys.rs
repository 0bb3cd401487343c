//! Which key of a config shows where in the objects.

use serde_json::{Value, json};

use super::{find, objects, trainer};
use crate::stage::Stage;

fn environment<'a>(container: &'a Value, name: &str) -> &'a Value {
    let mut variables = container["env"].as_array().unwrap().iter();
    &variables
        .find(|variable| variable["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {container:#}"))["value"]
}

#[test]
fn a_changed_key_shows_where_it_should() {
    let stage = Stage::new();
    let of = |words: &str| objects(&stage, &format!("--overlay indexed-job {words}"));
    let before = of("");
    let pod = |objects: &[Value], part: &str| find(objects, "Job", part)["spec"]["template"].clone();
    let memory = |objects: &[Value]| -> u64 {
        let text = trainer(objects)["resources"]["limits"]["memory"]
            .as_str()
            .unwrap()
            .to_owned();
        text.strip_suffix("Mi").unwrap().parse().unwrap()
    };
    let gib = |objects: &[Value]| -> u64 {
        let claim = find(objects, "PersistentVolumeClaim", "-shared");
        let text = claim["spec"]["resources"]["requests"]["storage"].as_str().unwrap();
        text.strip_suffix("Gi").unwrap().parse().unwrap()
    };

    let named = of("--set run.name=The.Second_1");
    for object in &named {
        let name = object["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("the-second-1-"), "{name}");
    }
    assert_eq!(
        environment(trainer(&named), "LOCKSTEP_RUN_DIR"),
        "/shared/runs/The.Second_1",
        "files keep the run's own name"
    );

    let threads = of("--set run.intra_op_threads=3");
    for name in ["OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
        assert_eq!(environment(trainer(&before), name), "1");
        assert_eq!(environment(trainer(&threads), name), "3");
    }
    assert_eq!(trainer(&threads)["resources"]["requests"]["cpu"], "3");
    assert_eq!(trainer(&threads)["resources"]["limits"]["cpu"], "4");

    let port = of("--set coordinator.bind=127.0.0.1:7123");
    let text = |value: &Value| value.to_string();
    assert_eq!(
        environment(trainer(&port), "LOCKSTEP_COORDINATOR"),
        "http://first-coordinator:7123"
    );
    assert!(text(&pod(&port, "-coordinator")).contains("0.0.0.0:7123"));
    assert!(text(&pod(&port, "-coordinator")).contains(r#""grpc":{"port":7124"#));
    assert_eq!(find(&port, "Service", "-coordinator")["spec"]["ports"][0]["port"], 7123);
    assert!(text(find(&port, "NetworkPolicy", "-coordinator")).contains("7123"));

    let restarts = of("--set fault.max_restarts=4");
    assert_eq!(find(&before, "Job", "-trainer")["spec"]["backoffLimit"], 10);
    assert_eq!(find(&restarts, "Job", "-trainer")["spec"]["backoffLimit"], 4);
    let grace = |objects: &[Value]| {
        pod(objects, "-trainer")["spec"]["terminationGracePeriodSeconds"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(
        grace(&before),
        60 + 30 + 1,
        "patience, leaving, one piece of a checkpoint"
    );
    assert_eq!(grace(&of("--set fault.patience_seconds=300")), 331);

    let large = of("--set model.width=2048 --set model.layers=24");
    assert!(memory(&large) > 4 * memory(&before) && grace(&large) > grace(&before) && gib(&large) > gib(&before));
    assert!(gib(&of("--set model.width=2048 --set checkpoint.keep_last=50")) > gib(&of("--set model.width=2048")));

    let three = of("-n 3");
    assert_eq!(find(&three, "Job", "-trainer")["spec"]["completions"], 3);
    assert_eq!(find(&three, "Job", "-trainer")["spec"]["parallelism"], 3);
    assert_eq!(
        find(&three, "PodDisruptionBudget", "-trainer")["spec"]["minAvailable"],
        2
    );
    let arguments = &pod(&three, "-coordinator")["spec"]["containers"][0]["args"];
    let arguments: Vec<&str> = arguments
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    assert!(
        arguments.windows(2).any(|pair| pair == ["--ranks", "3"]),
        "{arguments:?}"
    );

    let store = of("--set checkpoint.store=s3://bucket/first");
    assert_eq!(
        trainer(&store)["envFrom"],
        json!([{ "secretRef": { "name": "first-store" } }])
    );
    assert!(text(find(&store, "NetworkPolicy", "-trainer")).contains("443"));
    assert!(!text(find(&before, "NetworkPolicy", "-trainer")).contains("443"));
    let config = |objects: &[Value]| {
        find(objects, "ConfigMap", "-config")["data"]["run.toml"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(config(&store).contains("s3://bucket/first") && config(&before).contains("/shared/runs/first/checkpoints"));
    assert!(
        text(find(
            &of("--set telemetry.otlp=http://collector:4318"),
            "NetworkPolicy",
            "-trainer"
        ))
        .contains("4318")
    );

    let validation = of("--set data.validation=data");
    let mounts = text(&trainer(&validation)["volumeMounts"]);
    assert!(mounts.contains("/validation") && config(&validation).contains("/validation"));
    find(&validation, "PersistentVolumeClaim", "-validation");

    let device = of("--set run.device=cuda");
    assert_eq!(trainer(&device)["resources"]["limits"]["nvidia.com/gpu"], "1");
    assert_eq!(environment(trainer(&device), "CUBLAS_WORKSPACE_CONFIG"), ":4096:8");

    let rate = of("--set learning_rate.schedule=0.5");
    let annotation = |objects: &[Value]| pod(objects, "-trainer")["metadata"]["annotations"].clone();
    assert!(
        config(&rate) != config(&before) && annotation(&rate) != annotation(&before),
        "pods are made anew"
    );

    let tokens = objects(&stage, "--overlay indexed-job --tls --set security.tokens=tokens");
    assert!(text(&pod(&tokens, "-coordinator")).contains("/etc/lockstep/secret/tokens"));
}
