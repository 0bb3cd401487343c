//! The page of a run: served beside the services, watched in a real browser, kept in one file.
#![allow(clippy::unwrap_used)]

mod browser;
mod stage;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use browser::Browser;
use lockstep_config::RunConfig;
use lockstep_coordinator::ledger::{Ledger, RunRow};
use lockstep_coordinator::plan::Planner;
use lockstep_coordinator::run::{Commit, Record};
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions};
use lockstep_proto::domain::{Generation, MemberPlace, Stamp, StepMetrics};
use rustix::process::Signal;
use serde_json::{Value, json};
use stage::{PATIENCE, Running, Stage, real_trainer, said, send, wait_until};

/// Words of a run that lasts until it is stopped.
const ENDLESS: &str =
    "run run.toml -n 2 --json --set run.steps=1000000 --set validation.every=200 --set checkpoint.every=0";

fn events(run: &Running) -> Vec<Value> {
    // The last line may still be on its way.
    let text = run.out();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Starts an endless run; its address once it has made so many steps.
fn endless(stage: &Stage, steps: usize) -> (Running, String) {
    endless_with(stage, steps, "")
}

fn endless_with(stage: &Stage, steps: usize, words: &str) -> (Running, String) {
    real_trainer();
    let mut run = stage.start(&mut stage.command(&format!("{ENDLESS} {words}")));
    wait_until("the run has made its first steps", || {
        let made = events(&run).iter().filter(|event| event["event"] == "step").count();
        made >= steps || !run.is_running()
    });
    assert!(run.is_running(), "{}{}", run.out(), run.err());
    let started = events(&run)
        .into_iter()
        .find(|event| event["event"] == "started")
        .unwrap();
    let address = started["coordinator"]
        .as_str()
        .unwrap()
        .trim_start_matches("http://")
        .to_owned();
    (run, address)
}

/// The newest process of each rank.
fn trainer(run: &Running, rank: u32) -> u32 {
    let events = events(run);
    let newest = events
        .iter()
        .rfind(|event| event["event"] == "trainer" && event["rank"] == rank);
    newest.unwrap()["pid"].as_u64().unwrap() as u32
}

/// One request, as an old browser makes it: the answer ends with the connection.
fn open(address: &str, method: &str, path: &str, headers: &[&str], body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("{method} {path} HTTP/1.0\r\n");
    if !headers.iter().any(|header| header.starts_with("host:")) {
        request += &format!("host: {address}\r\n");
    }
    headers.iter().for_each(|header| request += &format!("{header}\r\n"));
    request += &format!("content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Code, head and body of an answer.
fn ask(address: &str, method: &str, path: &str, headers: &[&str], body: &str) -> (u16, String, String) {
    let mut answer = String::new();
    open(address, method, path, headers, body)
        .read_to_string(&mut answer)
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_lowercase(), body.to_owned())
}

fn get(address: &str, path: &str) -> (u16, String, String) {
    ask(address, "GET", path, &[], "")
}

fn command(address: &str, command: &str) -> (u16, Value) {
    let headers = ["x-lockstep: 1", "content-type: application/json"];
    let (code, _, body) = ask(
        address,
        "POST",
        "/api/command",
        &headers,
        &json!({ "command": command }).to_string(),
    );
    (code, serde_json::from_str(&body).unwrap())
}

#[test]
fn every_path_answers_and_commands_do_what_they_say() {
    let stage = Stage::new();
    let (mut run, address) = endless(&stage, 3);
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
        ("/api/state", "application/json"),
        ("/api/history?from=1&points=100", "application/json"),
        ("/metrics", "text/plain; version=0.0.4"),
    ] {
        let (code, head, body) = get(&address, path);
        assert!(
            code == 200 && head.contains(&format!("content-type: {kind}")),
            "{path}: {head}"
        );
        assert!(!body.is_empty(), "{path}");
        for safe in [
            "content-security-policy: default-src 'self'",
            "x-frame-options: deny",
            "nosniff",
        ] {
            assert!(head.contains(safe), "{path}: {head}");
        }
        assert!(!head.contains("access-control"), "{path}: {head}");
        for outside in ["https://", "//cdn"] {
            assert!(!body.contains(outside), "{path} names {outside}");
        }
    }
    let (code, _, body) = get(&address, "/nothing");
    assert!(code == 404 && body.contains("there is no such call"), "{body}");

    let (_, _, body) = get(&address, "/metrics");
    let metrics =
        openmetrics_parser::prometheus::parse_prometheus(&body).unwrap_or_else(|error| panic!("{error}\n{body}"));
    for name in [
        "step",
        "loss",
        "tokens",
        "phase_seconds",
        "ranks",
        "alerts",
        "total_steps",
    ] {
        assert!(
            metrics.families.contains_key(&format!("lockstep_{name}")),
            "{name} is missing in\n{body}"
        );
    }

    // A form of another site cannot set the header, and another name for the loopback is not answered to.
    let (code, _, body) = ask(
        &address,
        "POST",
        "/api/command",
        &["content-type: application/json"],
        "{\"command\":\"stop\"}",
    );
    assert!(code == 403 && body.contains("X-Lockstep"), "{body}");
    let (code, _, _) = ask(&address, "GET", "/api/state", &["host: evil.example"], "");
    assert!(matches!(code, 403 | 421), "{code}");

    let state = || -> Value { serde_json::from_str(&get(&address, "/api/state").2).unwrap() };
    let (code, answer) = command(&address, "pause");
    assert_eq!((code, answer["sentence"].is_string()), (200, true), "{answer}");
    wait_until("the run is paused", || state()["phase"] == "paused");
    assert_eq!(state()["members"].as_array().unwrap().len(), 2);
    let (code, answer) = command(&address, "checkpoint");
    assert!(
        code == 409 && answer["error"].as_str().unwrap().contains("no checkpoint now"),
        "{answer}"
    );
    let (code, answer) = command(&address, "dance");
    assert!(
        code == 400
            && answer["error"]
                .as_str()
                .unwrap()
                .contains("pause, resume, checkpoint, stop"),
        "{answer}"
    );
    command(&address, "resume");
    wait_until("the run trains", || state()["phase"] == "training");
    command(&address, "stop");
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    stage.nothing_runs();
}

#[test]
fn the_stream_of_events_brings_every_step_once_and_the_end_last() {
    let stage = Stage::new();
    let (mut run, address) = endless(&stage, 3);
    let stream = open(
        &address,
        "GET",
        "/api/events?since=0.0.0.0",
        &["accept: text/event-stream"],
        "",
    );
    let mut steps = 0;
    let mut kind = String::new();
    let mut is_stopped = false;
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        if let Some(name) = line.strip_prefix("event: ") {
            kind = name.to_owned();
        }
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        let news: Value = serde_json::from_str(data).unwrap();
        for step in news["history"]["step"].as_array().into_iter().flatten() {
            steps += 1;
            assert_eq!(step, steps, "no step is left out and none comes twice");
        }
        assert!(news.get("reset").is_none(), "{news}");
        if steps >= 20 && !is_stopped {
            is_stopped = true;
            command(&address, "stop");
        }
    }
    assert_eq!(kind, "end");
    assert!(steps >= 20, "{steps}");
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    stage.nothing_runs();
}

#[test]
fn an_alert_is_in_status_top_page_and_metrics_and_is_posted_without_its_address_being_told() {
    let stage = Stage::new();
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hush-hush", receiver.local_addr().unwrap());
    std::fs::write(stage.path("webhook"), format!("{url}\n")).unwrap();
    // No disk has so much free.
    let words = "--set alerts.webhook_file=webhook --set alerts.disk_mib=1000000000000";
    let (mut run, address) = endless_with(&stage, 3, words);
    let (mut stream, _) = receiver.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = Vec::new();
    while request.last() != Some(&b'}') {
        let mut some = [0; 4096];
        let read = stream.read(&mut some).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&request));
        request.extend(&some[..read]);
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .unwrap();
    let request = String::from_utf8(request).unwrap();
    assert!(request.starts_with("POST /hush-hush "), "{request}");
    let body: Value = serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(
        (&body["kind"], &body["state"], &body["run"]),
        (&json!("disk"), &json!("raised"), &json!("first"))
    );

    let sentence = "less than alerts.disk_mib = 1000000000000";
    for words in ["status", "top --once"] {
        let output = stage.lockstep(words);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).contains("disk"), "{words}: {}", said(&output));
    }
    assert!(said(&stage.lockstep("status")).contains(sentence));
    let top = said(&stage.lockstep("top --once"));
    for part in ["first", "training", "of 1000000", "loss", "rank", "p pause"] {
        assert!(top.contains(part), "{part:?} is missing in\n{top}");
    }
    assert!(get(&address, "/api/state").2.contains(sentence));
    assert!(
        get(&address, "/metrics")
            .2
            .contains("lockstep_alerts{run=\"first\",kind=\"disk\"} 1\n")
    );
    drop(receiver);
    command(&address, "stop");
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    for (file, content) in stage.listing() {
        let is_the_secret = file.ends_with("webhook");
        let content = content.unwrap_or_default();
        let tells = content.windows(9).any(|part| part == b"hush-hush");
        assert!(is_the_secret || !tells, "{} tells the address", file.display());
    }
    assert!(!format!("{}{}", run.out(), run.err()).contains("hush-hush"));
    stage.nothing_runs();
}

/// Where pictures of the page are kept.
fn pictures() -> PathBuf {
    let release = Path::new(env!("CARGO_BIN_EXE_lockstep")).parent().unwrap();
    release.parent().unwrap().join("screenshots")
}

/// A browser, or a word that there is none.
fn browser() -> Option<Browser> {
    let Some(program) = browser::installed() else {
        println!("left out: there is no Chromium here (`cargo xtask setup` says how to get one)");
        return None;
    };
    Some(Browser::start(&program))
}

#[test]
fn a_live_run_is_watched_paused_by_a_click_and_a_killed_member_is_seen() {
    let Some(browser) = browser() else { return };
    let stage = Stage::new();
    let (mut run, address) = endless(&stage, 500);
    browser.screen(1440, 900, false);
    browser.open(&format!("http://{address}/"));
    browser.wait_for(
        "the page shows the run",
        "document.querySelector('#name')?.innerText === 'first'",
    );
    browser.wait_for("steps come in", "Number(document.documentElement.dataset.steps) > 500");
    let steps = "Number(document.documentElement.dataset.steps)";
    let before = browser.value(steps).as_f64().unwrap();
    browser.wait_for("more steps come in", &format!("{steps} > {before}"));
    assert_eq!(browser.text("#phase"), "training");
    browser.wait_for(
        "two members are shown",
        "document.querySelectorAll('#members tbody tr').length === 2",
    );
    browser.wait_for(
        "charts are shown",
        "document.querySelectorAll('#grid figure:not([hidden])').length >= 6",
    );
    browser.picture(&pictures().join("live-1440x900.png"));

    browser.click("[data-command=pause]");
    browser.wait_for(
        "the answer is said",
        "document.querySelector('#said.shown')?.innerText.length > 0",
    );
    browser.wait_for(
        "the page says that it is paused",
        "document.querySelector('#phase').innerText === 'paused'",
    );
    browser.wait_for(
        "pausing is no choice any more",
        "document.querySelector('[data-command=pause]').disabled",
    );
    browser.click("[data-command=resume]");
    browser.wait_for(
        "the run trains again",
        "document.querySelector('#phase').innerText === 'training'",
    );

    // By the form: first what it would do, then the change itself.
    browser.value("document.querySelector('#set').open = true");
    browser.value("document.querySelector('#set-learning_rate').value = '0.0005'");
    browser.click("#set-form button");
    browser.wait_for(
        "the dry run is shown",
        "document.querySelector('#ask').open && document.querySelector('#question').innerText.startsWith('Takes effect at step ')",
    );
    browser.click("#yes");
    browser.wait_for(
        "the change is in the list of decisions",
        "document.querySelector('#decisions').innerText.includes('learning rate 0.0005')",
    );

    let lost = trainer(&run, 1);
    let formed = browser
        .value("document.querySelectorAll('#generations li').length")
        .as_u64()
        .unwrap();
    send(lost, Signal::KILL);
    browser.wait_for(
        "the loss is told",
        &format!("document.querySelector('#decisions').innerText.includes('{lost}')"),
    );
    browser.wait_for(
        "the next generation is shown",
        &format!("document.querySelectorAll('#generations li').length > {formed}"),
    );
    wait_until("the rank was started again", || trainer(&run, 1) != lost);
    let again = trainer(&run, 1);
    browser.wait_for(
        "the new member is shown",
        &format!("document.querySelector('#members').innerText.includes('{again}')"),
    );

    // By keys alone: to the first chart, a read-out, a zoom, and back.
    browser.value("document.querySelector('#whole').previousElementSibling.focus()");
    browser.key("Tab");
    assert_eq!(browser.value("document.activeElement.getAttribute('role')"), "img");
    let label = "document.activeElement.getAttribute('aria-label')";
    browser.key("ArrowLeft");
    browser.wait_for(
        "a step is read out",
        &format!("{label}.startsWith('Loss, step ') && {label}.includes('training ')"),
    );
    browser.key("+");
    browser.wait_for("the chart is zoomed", "!document.querySelector('#whole').disabled");
    browser.picture(&pictures().join("zoomed-1440x900.png"));
    browser.key("Escape");
    browser.wait_for("the whole run is shown", "document.querySelector('#whole').disabled");
    browser.drag("figure.large .plot", 0.3, 0.6);
    browser.wait_for("dragging zooms", "!document.querySelector('#whole').disabled");
    browser.click("#whole");

    browser.screen(1440, 900, true);
    browser.wait_for(
        "charts are drawn anew",
        "new Promise((done) => setTimeout(() => done(true), 400))",
    );
    browser.picture(&pictures().join("dark-1440x900.png"));
    browser.screen(390, 844, false);
    let overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
    browser.wait_for("nothing is wider than a phone", &format!("!({overflow})"));
    browser.picture(&pictures().join("live-390x844.png"));

    // A stop is asked about first; by keys.
    browser.value("document.querySelector('[data-command=stop]').focus()");
    browser.key("Enter");
    browser.wait_for("it asks", "document.querySelector('#ask').open");
    browser.key("Escape");
    browser.wait_for("it asks no more", "!document.querySelector('#ask').open");
    assert_eq!(browser.text("#phase"), "training");
    browser.click("[data-command=stop]");
    browser.wait_for("it asks again", "document.querySelector('#ask').open");
    // The end of the first dialog, told late, as on a busy machine: it answers nothing.
    browser.value("document.querySelector('#ask').dispatchEvent(new Event('close'))");
    browser.click("#yes");
    browser.wait_for(
        "the end is shown",
        "document.querySelector('#phase').innerText === 'stopped'",
    );
    browser.wait_for(
        "no button is left",
        "document.querySelectorAll('#commands button').length === 0",
    );
    browser.is_content();
    assert_eq!(run.wait(), 3, "{}{}", run.out(), run.err());
    stage.nothing_runs();
}

#[test]
fn the_page_of_a_finished_run_is_one_file_that_shows_it_without_a_coordinator() {
    real_trainer();
    let stage = Stage::new();
    let output = stage.lockstep("run run.toml -n 2");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let output = stage.lockstep("page first --out first.html");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("first.html"), "{}", said(&output));
    let refused = stage.lockstep("page second --out second.html");
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(!stage.path("second.html").exists());
    let Some(browser) = browser() else { return };
    browser.screen(1440, 900, false);
    browser.open(&format!("file://{}", stage.path("first.html").display()));
    browser.wait_for("the run is shown", "document.documentElement.dataset.steps === '6'");
    assert_eq!(browser.text("#phase"), "completed");
    assert_eq!(browser.text("#link"), "a saved page");
    assert!(
        browser.text("#figures").contains("of 6"),
        "{}",
        browser.text("#figures")
    );
    assert_eq!(browser.value("document.querySelectorAll('#commands button').length"), 0);
    browser.picture(&pictures().join("saved-1440x900.png"));
    browser.is_content();
}

/// A coordinator that goes on with a run of so many steps, and waits for its trainers.
fn long_run(folder: &Path, steps: u64) -> lockstep_coordinator::Running {
    let sets = ["run.steps=1000000", "validation.every=0"].map(str::to_owned);
    let config = RunConfig::parse(stage::CONFIG, "run.toml", &sets).unwrap();
    let planner = Planner::new(&config, 1000).unwrap();
    let row = RunRow {
        run_id: "first-1".to_owned(),
        name: config.run.name.clone(),
        config_toml: config.to_toml(),
        config_hash: config.hash(),
        data_hash: "data".to_owned(),
        training_samples: 1000,
    };
    let mut ledger = Ledger::open(folder, row).unwrap();
    let stamp = Stamp { term: 1, generation: 1 };
    let place = MemberPlace {
        member: "rank-0".to_owned(),
        rank: 0,
        lanes: 0..4,
        pid: 1,
        host: "here".to_owned(),
        parts_address: String::new(),
    };
    let generation = Generation {
        stamp,
        members: vec![place],
        lanes: 4,
        resume: None,
        replay_through: 0,
        secret: [0; 32],
    };
    ledger.append(&[Record::Generation(generation)]).unwrap();
    let (mut cursor, mut tokens) = (0, 0);
    let mut records = Vec::new();
    for step in 1..=steps {
        let plan = planner.plan(step, cursor);
        (cursor, tokens) = (cursor + plan.samples, tokens + 256);
        let wobble = (step as f64 * 12.9898).sin().abs() * 0.1;
        let metrics = StepMetrics {
            loss: 2.0 + 3.0 / (1.0 + step as f64 / 3000.0) + wobble,
            tokens: 256,
            grad_norm: 1.0 + wobble,
            update_norm: 0.1,
            learning_rate: plan.learning_rate,
            effective_learning_rate: plan.learning_rate,
            step_ms: 90.0 + 100.0 * wobble,
            phases: ["data", "forward", "backward", "reduce", "slots", "polar", "apply"]
                .map(|phase| (format!("{phase}_ms"), 12.0 + 10.0 * wobble))
                .to_vec(),
            ..StepMetrics::default()
        };
        records.push(Record::Plans(vec![plan.clone()]));
        records.push(Record::Committed(Box::new(Commit {
            stamp,
            plan,
            parameter_hash: [1; 32],
            metrics,
            ranks: 1,
            samples: cursor,
            tokens,
            noise_scale: None,
        })));
        if records.len() >= 20_000 || step == steps {
            ledger.append(&std::mem::take(&mut records)).unwrap();
        }
    }
    drop(ledger);
    Coordinator::start(CoordinatorOptions {
        config,
        run_dir: folder.to_owned(),
        begun: BegunRun::TakenOver,
        vocabulary: 257,
        ranks: 1,
        training_samples: 1000,
        data_hash: "data".to_owned(),
    })
    .unwrap()
}

#[test]
fn a_hundred_thousand_steps_of_history_are_all_shown_and_come_back_one_by_one() {
    const STEPS: u64 = 100_000;
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let running = long_run(folder.path(), STEPS);
    browser.screen(1440, 900, false);
    browser.open(&format!("http://{}/", running.address()));
    browser.wait_for(
        "all of it is shown",
        &format!(
            "document.documentElement.dataset.steps === '{STEPS}' && performance.getEntriesByName('shown').length > 0"
        ),
    );
    let shown = browser.value("performance.getEntriesByName('shown')[0].startTime");
    println!(
        "{STEPS} steps were shown {:.0} ms after the page was asked for",
        shown.as_f64().unwrap()
    );
    browser.picture(&pictures().join("long-1440x900.png"));
    // Zoomed far enough, each step has a point of its own.
    browser.drag("figure.large .plot", 0.500, 0.512);
    browser.wait_for("the range is shown", "!document.querySelector('#whole').disabled");
    let label = |browser: &Browser| browser.value("document.activeElement.getAttribute('aria-label')");
    let step_of = |label: Value| -> u64 {
        let text = label.as_str().unwrap().to_owned();
        text.split(&[' ', ':'][..]).find_map(|word| word.parse().ok()).unwrap()
    };
    browser.value("document.querySelector('figure.large .plot').focus()");
    wait_until("the steps are one by one", || {
        browser.key("ArrowLeft");
        let one = step_of(label(&browser));
        browser.key("ArrowLeft");
        one == step_of(label(&browser)) + 1
    });
    browser.is_content();
}
