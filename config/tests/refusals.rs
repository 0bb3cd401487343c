//! What a config may not say, and the sentence that it gets.
#![allow(clippy::unwrap_used)]

use lockstep_config::{ConfigError, OptimizerSection, Precision, RunConfig};

const GOOD: &str = r#"
[run]
name = "first"
steps = 10

[data]
path = "data"
sequence_length = 64

[model]
layers = 2
heads = 4
width = 64

[batch]
micro_batch = 4
schedule = 32

[learning_rate]
schedule = 0.001
"#;

fn with(set: &str) -> Result<RunConfig, ConfigError> {
    RunConfig::parse(GOOD, "run.toml", &[set.to_owned()])
}

/// The sentence for a `--set`, which must hold every one of `parts`.
fn refused(set: &str, parts: &[&str]) {
    let sentence = with(set).expect_err(set).to_string();
    for part in parts {
        assert!(
            sentence.contains(part),
            "--set {set}: {part:?} is missing in: {sentence}"
        );
    }
}

#[test]
fn a_minimal_config_is_taken_with_its_defaults() {
    let config = RunConfig::parse(GOOD, "run.toml", &[]).unwrap();
    assert_eq!(config.run.lanes, 4);
    assert_eq!(config.context(), 64);
    assert_eq!(config.optimizer.hidden_scale, 20.0);
    assert_eq!(config.optimizer.polar.precision, config.run.precision);
    assert_eq!(config.coordinator.bind.to_string(), "127.0.0.1:0");
    assert_eq!(config.validation.every, 100);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    for (set, unknown, nearest) in [
        ("run.lane=4", "`run.lane`", "`run.lanes`"),
        ("optimizer.momentun=0.9", "`optimizer.momentun`", "`optimizer.momentum`"),
        (
            "optimizer.polar.step=3",
            "`optimizer.polar.step`",
            "`optimizer.polar.steps`",
        ),
        ("learnign_rate.schedule=1e-3", "`learnign_rate`", "`learning_rate`"),
        (
            "batch.schedule={kind=\"constant\",siez=3}",
            "`batch.schedule.siez`",
            "`batch.schedule.size`",
        ),
        (
            "learning_rate.schedule={kind=\"cosine\",peak=1.0,warm_up=3}",
            "warm_up",
            "`learning_rate.schedule.warmup`",
        ),
    ] {
        refused(set, &["run.toml", unknown, nearest]);
    }
}

#[test]
fn a_misspelt_key_that_has_to_be_there_is_named_as_misspelt() {
    let text = GOOD.replace("layers = 2", "layrs = 2");
    let sentence = RunConfig::parse(&text, "run.toml", &[]).unwrap_err().to_string();
    assert!(
        sentence.contains("`model.layrs`") && sentence.contains("`model.layers`"),
        "{sentence}"
    );
}

#[test]
fn a_schedule_key_that_its_kind_does_not_have_is_refused() {
    refused(
        "learning_rate.schedule={kind=\"constant\",peak=1.0,decay=0.2}",
        &["`learning_rate.schedule.decay`"],
    );
}

#[test]
fn values_out_of_their_range_are_refused_with_key_value_and_range() {
    for (set, parts) in [
        ("run.lanes=0", ["`run.lanes`", "is 0", "from 1 to 4096"]),
        ("run.lanes=2.5", ["`run.lanes`", "2.5", "whole number"]),
        ("run.seed=-1", ["`run.seed`", "-1", "at least 0"]),
        ("run.name=a/b", ["`run.name`", "a/b", "folder"]),
        ("run.name=..", ["`run.name`", "..", "folder"]),
        ("run.name=\"\"", ["`run.name`", "\"\"", "folder"]),
        ("run.steps=0", ["`run.steps`", "0", "at least 1"]),
        ("run.precision=fp16", ["`run.precision`", "fp16", "\"bf16\", \"fp32\""]),
        (
            "run.reduction=slow",
            ["`run.reduction`", "slow", "\"invariant\", \"fast\""],
        ),
        ("run.device=tpu", ["`run.device`", "tpu", "\"cpu\", \"cuda\""]),
        (
            "collective.backend=gloo",
            ["`collective.backend`", "gloo", "\"mpi\", \"nccl\""],
        ),
        (
            "collective.backend=nccl",
            ["`collective.backend`", "nccl", "run.device is \"cpu\""],
        ),
        (
            "collective.wire=fp16",
            ["`collective.wire`", "fp16", "\"fp32\", \"bf16\""],
        ),
        (
            "checkpoint.store=gs://bucket",
            ["`checkpoint.store`", "gs://bucket", "s3://BUCKET/PREFIX"],
        ),
        (
            "checkpoint.store=s3://",
            ["`checkpoint.store`", "s3://", "s3://BUCKET/PREFIX"],
        ),
        ("checkpoint.keep_last=0", ["`checkpoint.keep_last`", "0", "at least 1"]),
        ("collective.overlap=1", ["`collective.overlap`", "1", "true or false"]),
        (
            "collective.transport=rdma",
            ["`collective.transport`", "rdma", "\"auto\", \"tcp\""],
        ),
        ("fault.min_ranks=0", ["`fault.min_ranks`", "0", "1"]),
        ("fault.max_ranks=99", ["`fault.max_ranks`", "99", "1"]),
        ("fault.snapshot_every=-1", ["`fault.snapshot_every`", "-1", "0"]),
        ("fault.patience_seconds=0", ["`fault.patience_seconds`", "0", "above 0"]),
        ("fault.lease_seconds=1", ["`fault.lease_seconds`", "1", "from 2"]),
        ("fault.on_not_finite=off", ["`fault.on_not_finite`", "off", "\"skip\""]),
        ("fault.on_spike=undo", ["`fault.on_spike`", "undo", "\"rewind\""]),
        ("fault.max_rewinds=-1", ["`fault.max_rewinds`", "-1", "0"]),
        ("fault.rewind_steps=-1", ["`fault.rewind_steps`", "-1", "0"]),
        ("fault.rewind_skip=1", ["`fault.rewind_skip`", "1", "true or false"]),
        ("fault.rewind_factor=0", ["`fault.rewind_factor`", "0", "above 0"]),
        ("fault.rewind_factor=1.5", ["`fault.rewind_factor`", "1.5", "at most 1"]),
        ("fault.spike_sigmas=0", ["`fault.spike_sigmas`", "0", "above 0"]),
        ("fault.max_skips=-1", ["`fault.max_skips`", "-1", "0"]),
        ("fault.drift_every=-1", ["`fault.drift_every`", "-1", "0"]),
        (
            "collective.deadline_seconds=0",
            ["`collective.deadline_seconds`", "0", "above 0"],
        ),
        ("run.intra_op_threads=0", ["`run.intra_op_threads`", "0", "from 1"]),
        ("data.sequence_length=0", ["`data.sequence_length`", "0", "from 1"]),
        ("model.kind=llama", ["`model.kind`", "llama", "\"gpt2\""]),
        ("model.heads=5", ["`model.heads`", "5", "model.width, which is 64"]),
        ("model.layers=-3", ["`model.layers`", "-3", "from 1"]),
        (
            "model.context=32",
            ["`model.context`", "32", "data.sequence_length, which is 64"],
        ),
        ("model.vocab=0", ["`model.vocab`", "0", "from 1"]),
        ("model.bias=1", ["`model.bias`", "1", "true or false"]),
        ("batch.micro_batch=0", ["`batch.micro_batch`", "0", "from 1"]),
        ("batch.schedule=0", ["`batch.schedule`", "0", "samples"]),
        (
            "batch.schedule={kind=\"steps\",sizes=[]}",
            ["`batch.schedule.sizes`", "[]", "from step 0"],
        ),
        (
            "batch.schedule={kind=\"steps\",sizes=[[1,8]]}",
            ["`batch.schedule.sizes`", "8", "from step 0"],
        ),
        (
            "batch.schedule={kind=\"steps\",sizes=[[0,8],[0,9]]}",
            ["`batch.schedule.sizes`", "9", "rising"],
        ),
        (
            "learning_rate.schedule=-1e-3",
            ["`learning_rate.schedule`", "-0.001", "above 0"],
        ),
        (
            "learning_rate.schedule=nan",
            ["`learning_rate.schedule`", "nan", "above 0"],
        ),
        (
            "learning_rate.schedule={kind=\"cosine\",peak=1,floor=2}",
            ["`learning_rate.schedule.floor`", "2", "0 to 1"],
        ),
        (
            "batch.schedule={kind=\"growth\",start=8,factor=2,every=10}",
            ["`batch.schedule.max`", "missing", "samples"],
        ),
        (
            "batch.schedule={kind=\"growth\",start=8,factor=2,every=10,max=4}",
            ["`batch.schedule.max`", "4", "at least `start`"],
        ),
        (
            "batch.schedule={kind=\"linear\",peak=8}",
            ["`batch.schedule.floor`", "0", "from 1"],
        ),
        (
            "batch.schedule={kind=\"product\",factors=[]}",
            ["`batch.schedule.kind`", "product", "in range"],
        ),
        (
            "learning_rate.schedule={kind=\"exponential\",peak=1}",
            ["`learning_rate.schedule.floor`", "0", "never lead to 0"],
        ),
        (
            "learning_rate.schedule={kind=\"inverse-sqrt\",peak=1,unit=\"tokens\"}",
            ["`learning_rate.schedule.scale`", "missing", "tokens"],
        ),
        (
            "learning_rate.schedule={kind=\"growth\",start=1,factor=2,every=0.5}",
            ["`learning_rate.schedule.every`", "0.5", "whole number of steps"],
        ),
        (
            "learning_rate.schedule={kind=\"sequence\",parts=[{kind=\"constant\",peak=1},{kind=\"constant\",peak=2}]}",
            ["`learning_rate.schedule.parts.0.for`", "missing", "steps"],
        ),
        (
            "learning_rate.schedule={kind=\"table\",file=\"/absent/rates.csv\"}",
            ["`learning_rate.schedule.file`", "/absent/rates.csv", "cannot be read"],
        ),
        (
            "learning_rate.couple=sqrt",
            ["`learning_rate.base_batch`", "missing", "samples"],
        ),
        (
            "momentum.schedule={kind=\"linear\",start=0.9,end=1.0,over=5}",
            ["`momentum.schedule.end`", "1.0", "below 1"],
        ),
        ("schedule.family=warm-up", ["`schedule.batch`", "missing", "samples"]),
        (
            "learning_rate.schedule={kind=\"exp\",peak=1}",
            ["`learning_rate.schedule.kind`", "exp", "\"cosine\""],
        ),
        (
            "optimizer.method=shampoo",
            ["`optimizer.method`", "shampoo", "\"muon\", \"normuon\", \"adamw\""],
        ),
        ("optimizer.momentum=1", ["`optimizer.momentum`", "1", "below 1"]),
        ("optimizer.betas=[0.9,1.0]", ["`optimizer.betas`", "1.0", "below 1"]),
        ("optimizer.betas=[0.9]", ["`optimizer.betas`", "0.9", "two numbers"]),
        ("optimizer.epsilon=0", ["`optimizer.epsilon`", "0", "above 0"]),
        (
            "optimizer.weight_decay=-0.1",
            ["`optimizer.weight_decay`", "-0.1", "at least 0"],
        ),
        (
            "optimizer.hidden_scale=inf",
            ["`optimizer.hidden_scale`", "inf", "above 0"],
        ),
        ("optimizer.clip_norm=0", ["`optimizer.clip_norm`", "0", "above 0"]),
        (
            "optimizer.scaling=mine",
            ["`optimizer.scaling`", "mine", "\"match-rms\""],
        ),
        (
            "optimizer.polar.steps=100",
            ["`optimizer.polar.steps`", "100", "from 1 to 99"],
        ),
        (
            "optimizer.polar.method=qr",
            ["`optimizer.polar.method`", "qr", "\"polar-express\""],
        ),
        ("optimizer.polar=3", ["`optimizer.polar`", "3", "[optimizer.polar]"]),
        ("validation.every=-1", ["`validation.every`", "-1", "at least 0"]),
        (
            "coordinator.bind=0.0.0.0:0",
            ["`coordinator.bind`", "0.0.0.0:0", "TLS and tokens"],
        ),
        (
            "coordinator.bind=localhost",
            ["`coordinator.bind`", "localhost", "ADDRESS:PORT"],
        ),
        (
            "coordinator.plan_window_seconds=0",
            ["`coordinator.plan_window_seconds`", "0", "above 0"],
        ),
    ] {
        refused(set, &["run.toml", parts[0], parts[1], parts[2]]);
    }
}

#[test]
fn a_rewind_that_cannot_be_made_or_leads_to_the_same_step_again_is_refused() {
    let parse = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(GOOD, "run.toml", &sets)
    };
    for policy in ["fault.on_spike=rewind", "fault.on_not_finite=rewind"] {
        assert!(parse(&[policy]).unwrap().fault.may_rewind());
        let mpi = parse(&[policy, "collective.backend=mpi"]).unwrap_err().to_string();
        let key = policy.split('=').next().unwrap();
        assert!(
            mpi.contains(&format!("`{key}`")) && mpi.contains("cannot be formed anew"),
            "{mpi}"
        );
        let same = parse(&[policy, "fault.rewind_skip=false"]).unwrap_err().to_string();
        assert!(
            same.contains("`fault.rewind_factor`") && same.contains("the same step again"),
            "{same}"
        );
        assert!(parse(&[policy, "fault.rewind_skip=false", "fault.rewind_factor=0.5"]).is_ok());
    }
}

#[test]
fn only_nccl_moves_the_memory_of_gpus() {
    let on_gpus = |backend: &str| {
        let sets = ["run.device=cuda".to_owned(), format!("collective.backend={backend}")];
        RunConfig::parse(GOOD, "run.toml", &sets)
    };
    for backend in ["auto", "nccl"] {
        let config = on_gpus(backend).unwrap();
        assert_eq!((config.backend_name(1), config.backend_name(4)), ("nccl", "nccl"));
    }
    for backend in ["host", "mpi"] {
        let sentence = on_gpus(backend).unwrap_err().to_string();
        for part in [
            "`collective.backend`",
            backend,
            "\"nccl\", since run.device is \"cuda\"",
        ] {
            assert!(sentence.contains(part), "{part} is missing in: {sentence}");
        }
    }
}

#[test]
fn a_set_that_does_not_parse_is_refused() {
    for (set, reason) in [
        ("run.lanes", "no `=`"),
        ("=4", "not a dotted key"),
        ("run..lanes=4", "not a dotted key"),
        ("lanes=4", "names no section"),
        ("run.lanes=", "is empty"),
        ("optimizer.betas=[0.9, 0.95", "not valid TOML"),
        ("batch.schedule={ kind = }", "not valid TOML"),
        ("run.name.first=4", "no keys of its own"),
    ] {
        refused(set, &["--set", set, reason]);
    }
}

#[test]
fn broken_toml_is_refused_with_line_and_column() {
    let error = RunConfig::parse("[run]\nname = \"x\"\nlanes = = 4\n", "run.toml", &[]).unwrap_err();
    assert!(
        matches!(error, ConfigError::Syntax { line: 3, column: 9, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("run.toml, line 3, column 9"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.toml");
    for path in [absent.as_path(), folder.path()] {
        let sentence = RunConfig::read(path, &[]).unwrap_err().to_string();
        assert!(sentence.contains(&path.display().to_string()), "{sentence}");
    }
}

#[test]
fn missing_keys_are_named_with_what_they_may_be() {
    for key in [
        "name",
        "steps",
        "path",
        "sequence_length",
        "layers",
        "heads",
        "width",
        "micro_batch",
    ] {
        let without: String = GOOD
            .lines()
            .filter(|line| !line.starts_with(key))
            .fold(String::new(), |text, line| text + line + "\n");
        let sentence = RunConfig::parse(&without, "run.toml", &[]).unwrap_err().to_string();
        assert!(sentence.contains(&format!(".{key}` is missing")), "{key}: {sentence}");
    }
}

#[test]
fn exactly_one_length_stands() {
    let two = GOOD.replace("steps = 10", "steps = 10\ntokens = 5");
    let sentence = RunConfig::parse(&two, "run.toml", &[]).unwrap_err().to_string();
    assert!(
        sentence.contains("`run.tokens`") && sentence.contains("exactly one"),
        "{sentence}"
    );
    let set = with("run.tokens=5000").unwrap();
    assert_eq!(set.run.length, lockstep_config::Length::Tokens(5000));
    let both = ["run.tokens=5".to_owned(), "run.samples=5".to_owned()];
    assert!(RunConfig::parse(GOOD, "run.toml", &both).is_err());
}

/// The sentence for an `[optimizer]` table, which must hold every one of `parts`.
fn optimizer_refused(table: &str, parts: &[&str]) {
    let table_parsed = table.parse().expect(table);
    let error = OptimizerSection::parse(table_parsed, "run.toml", Precision::Bf16).expect_err(table);
    let sentence = error.to_string();
    for part in ["run.toml", "`optimizer."].iter().chain(parts) {
        assert!(sentence.contains(part), "{table}: {part:?} is missing in: {sentence}");
    }
}

#[test]
fn a_method_is_named_or_spelt_out_whole_not_both() {
    optimizer_refused(
        "method = \"muonmax\"\nproduct = \"l2\"",
        &["method`", "`optimizer.product`", "not both"],
    );
    optimizer_refused(
        "descent = \"constrained\"\nproduct = \"l2\"",
        &["`optimizer.other` is missing", "ada-inf"],
    );
    optimizer_refused(
        "descent = \"both\"\nproduct = \"l2\"\nother = \"sign\"",
        &["both", "\"regularized\""],
    );
}

#[test]
fn keys_that_do_not_belong_to_a_method_are_refused_with_the_reason() {
    for (table, parts) in [
        (
            "method = \"adamw\"\nmomentum = 0.9",
            ["momentum`", "optimizer.betas[0]"],
        ),
        ("method = \"sgd\"\nbetas = [0.9, 0.9]", ["betas`", "optimizer.momentum"]),
        ("method = \"momo\"\nepsilon = 1e-8", ["epsilon`", "second moment"]),
        (
            "method = \"adamw\"\nhidden_scale = 2.0",
            ["hidden_scale`", "no hidden matrices"],
        ),
        (
            "method = \"sgd\"\nscaling = \"fan\"",
            ["scaling`", "no hidden matrices"],
        ),
        (
            "method = \"adamw\"\npolar = { steps = 3 }",
            ["polar`", "orthogonalises nothing"],
        ),
        (
            "method = \"sgd\"\nhidden = [\"*\"]",
            ["hidden`", "orthogonalises nothing"],
        ),
        ("method = \"muon\"\nnormalized = true", ["normalized`", "only sgd"]),
        (
            "method = \"scion\"\nnesterov = true",
            ["nesterov`", "muon, normuon or sgd"],
        ),
        (
            "method = \"momo-adam\"\nnesterov = true",
            ["nesterov`", "muon, normuon or sgd"],
        ),
        (
            "polar = { method = \"svd\", precision = \"bf16\" }",
            ["polar.precision`", "no bf16 form"],
        ),
        ("polar = { table = \"you\" }", ["polar.table`", "newton-schulz"]),
        ("polar = { restart = 2 }", ["polar.restart`", "only gram"]),
        (
            "polar = { method = \"gram\", restart = 4 }",
            ["polar.restart`", "diverges"],
        ),
    ] {
        optimizer_refused(table, &parts);
    }
    let fp32 = "polar = { method = \"gram\", restart = 4, precision = \"fp32\" }";
    assert!(OptimizerSection::parse(fp32.parse().unwrap(), "run.toml", Precision::Bf16).is_ok());
}

#[test]
fn what_breaks_the_model_of_the_loss_is_refused_with_the_reason() {
    for (table, parts) in [
        ("method = \"muon\"\nmomo = {}", ["momo`", "muonadam"]),
        ("method = \"normuon\"\nmomo = {}", ["momo`", "rows"]),
        ("method = \"adamw\"\nmomo = {}", ["momo`", "momo-adam"]),
        ("method = \"sgd\"\nmomo = {}", ["momo`", "is momo"]),
        (
            "method = \"muonmax\"\nmomo = {}\nclip_norm = 1.0",
            ["clip_norm`", "clipped gradient"],
        ),
        ("method = \"momo\"\nclip_norm = 1.0", ["clip_norm`", "clipped gradient"]),
        (
            "method = \"muonmax\"\nmomo = {}\ncautious = true",
            ["cautious`", "evaluated"],
        ),
        (
            "method = \"scion\"\nmomo = {}\nmomentum = 0.9\nbetas = [0.95, 0.95]",
            ["momentum`", "optimizer.betas[0]"],
        ),
        (
            "method = \"momo\"\nmomo = { decay = \"exact\" }",
            ["momo.decay`", "part of"],
        ),
        (
            "method = \"momo\"\ngroups = [{ match = \"*\", lr_scale = 2.0 }]",
            ["lr_scale = 2.0", "one step size"],
        ),
        (
            "method = \"muonmax\"\nmomo = { lower_bound = nan }",
            ["momo.lower_bound`", "finite"],
        ),
        (
            "method = \"muonmax\"\nmomo = { lower_bound = \"low\" }",
            ["momo.lower_bound`", "auto"],
        ),
        (
            "method = \"muonmax\"\nmomo = { bound = 1.0 }",
            ["momo.bound`", "momo.lower_bound`"],
        ),
        ("method = \"muonmax\"\nmomo = true", ["momo`", "[optimizer.momo]"]),
    ] {
        optimizer_refused(table, &parts);
    }
}

#[test]
fn rules_that_say_nothing_are_refused() {
    for (table, parts) in [
        ("hidden = []", ["hidden`", "list of rules"]),
        ("hidden = [3]", ["hidden`", "list of rules"]),
        ("hidden = [\"a[\"]", ["hidden`", "a["]),
        ("hidden = [{ split = 3 }]", ["hidden[0].match` is missing", "pattern"]),
        (
            "hidden = [{ match = \"a\", split = 0 }]",
            ["hidden[0].split`", "thirds"],
        ),
        (
            "hidden = [{ match = \"a\", split = \"halves\" }]",
            ["hidden[0].split`", "thirds"],
        ),
        (
            "hidden = [{ match = \"a\", spilt = 3 }]",
            ["hidden[0].spilt`", "hidden[0].split`"],
        ),
        (
            "hidden = [\"a\", { match = \"!b\" }]",
            ["hidden[1].match`", "text of its own"],
        ),
        ("groups = 3", ["groups`", "list of groups"]),
        (
            "groups = [{ match = \"a\" }]",
            ["groups[0].lr_scale` is missing", "weight_decay"],
        ),
        (
            "groups = [{ match = \"a\", lr_scale = -1.0 }]",
            ["groups[0].lr_scale`", "above 0"],
        ),
        (
            "groups = [{ match = \"a\", lr_scale = nan }]",
            ["groups[0].lr_scale`", "above 0"],
        ),
        (
            "groups = [{ match = \"a\", weight_decay = -0.1 }]",
            ["groups[0].weight_decay`", "at least 0"],
        ),
        (
            "groups = [{ match = \"\", weight_decay = 0.1 }]",
            ["groups[0].match`", "pattern"],
        ),
    ] {
        optimizer_refused(table, &parts);
    }
}

#[test]
fn an_address_that_others_reach_needs_tls_and_known_callers() {
    let parse = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(GOOD, "run.toml", &sets)
    };
    let open = "coordinator.bind=0.0.0.0:0";
    let pair = ["security.certificate=c.pem", "security.key=k.pem"];
    let (tokens, authority) = ("security.tokens=tokens", "security.client_ca=ca.pem");
    for good in [
        vec![open, pair[0], pair[1], tokens],
        vec![open, pair[0], pair[1], authority],
        vec![open, pair[0], pair[1], authority, tokens],
        vec![open, "security.insecure_bind=true"],
        vec![open, tokens, "security.insecure_bind=true"],
        vec![tokens],
        vec!["coordinator.bind=[::1]:0", pair[0], pair[1]],
    ] {
        parse(&good).unwrap_or_else(|error| panic!("{good:?}: {error}"));
    }
    for (bad, part) in [
        (vec![open], "security.insecure_bind"),
        (vec![open, tokens], "in clear"),
        (vec![open, pair[0], pair[1]], "security.client_ca or security.tokens"),
        (vec!["coordinator.bind=[::]:0"], "TLS and tokens"),
        (vec![pair[0]], "`security.key`"),
        (vec![pair[1]], "`security.certificate`"),
        (vec![authority], "over TLS only"),
        (vec!["security.connections=0"], "`security.connections`"),
        (vec!["security.token=x"], "`security.tokens`"),
    ] {
        let error = parse(&bad).expect_err(&format!("{bad:?}")).to_string();
        assert!(error.contains(part), "{bad:?}: {part:?} is missing in: {error}");
    }
}

#[test]
fn a_secret_in_the_address_of_a_webhook_is_refused_without_being_repeated() {
    for url in [
        "https://hooks.example/post?token=hush",
        "https://user:hush@hooks.example/",
        "hush",
    ] {
        let sentence = with(&format!("alerts.webhook={url}")).expect_err(url).to_string();
        assert!(sentence.contains("`alerts.webhook`"), "{sentence}");
        assert!(!sentence.contains("hush"), "{sentence}");
    }
    refused("alerts.data_share=1.0", &["`alerts.data_share`", "below 1"]);
    assert!(with("alerts.webhook=http://127.0.0.1:9/post").is_ok());
}

#[test]
fn a_collector_is_named_by_its_base_address_and_no_secret_is_repeated() {
    for (url, advice) in [
        ("hush", "\"http://127.0.0.1:4318\""),
        ("grpc://hush:4317", "\"http://127.0.0.1:4318\""),
        ("http:///hush", "\"http://127.0.0.1:4318\""),
        ("https://user:hush@collector.example", "without a user"),
        ("https://collector.example/?key=hush", "a query"),
        ("http://hush:4318/v1/traces", "leave /v1/traces out"),
    ] {
        let sentence = with(&format!("telemetry.otlp={url}")).expect_err(url).to_string();
        for part in ["`telemetry.otlp`", advice] {
            assert!(sentence.contains(part), "{url}: {part} is missing in: {sentence}");
        }
        assert!(!sentence.contains("hush"), "{sentence}");
    }
    refused("telemetry.otpl=http://127.0.0.1:4318", &["`telemetry.otlp`"]);
    assert_eq!(with("run.seed=1").unwrap().telemetry.otlp, None);
    let url = "http://127.0.0.1:4318";
    let some = with(&format!("telemetry.otlp={url}")).unwrap();
    assert_eq!(some.telemetry.otlp.as_deref(), Some(url));
}

#[test]
fn a_batch_that_follows_the_noise_needs_lanes_that_are_measured_and_a_size_to_begin_with() {
    let adaptive = "batch.adaptive={ most = 64 }";
    assert_eq!(
        with(adaptive).unwrap().batch.adaptive.map(|adaptive| adaptive.every),
        Some(100)
    );
    let also = |set: &str| {
        let sets = [adaptive.to_owned(), set.to_owned()];
        RunConfig::parse(GOOD, "run.toml", &sets).expect_err(set).to_string()
    };
    for (set, part) in [
        ("run.reduction=\"fast\"", "between lanes whose sums are kept apart"),
        ("run.lanes=1", "at least 2 run.lanes"),
        ("batch.micro_batch=32", "one lane has all the work"),
        (
            "batch.schedule={ kind = \"steps\", sizes = [[0, 16], [9, 32]] }",
            "the size to begin with",
        ),
    ] {
        let sentence = also(set);
        assert!(
            sentence.contains("`batch.adaptive`") && sentence.contains(part),
            "{set}: {sentence}"
        );
    }
    refused("batch.adaptive={}", &["`batch.adaptive.most`"]);
    refused("batch.adaptive={ most = 31 }", &["`batch.adaptive.most`", "32 to"]);
    refused("batch.adaptive={ most = 64, growth = 1 }", &["`batch.adaptive.growth`"]);
    refused(
        "batch.adaptive={ most = 64, by = \"goodput\", target = 2 }",
        &["`batch.adaptive.target`"],
    );
}
