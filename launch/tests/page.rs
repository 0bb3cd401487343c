//! The page of a run: served beside the services, watched in a real browser, kept in one file.
#![allow(clippy::unwrap_used)]

mod browser;
mod stage;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use browser::Browser;
use rustix::process::Signal;
use serde_json::{Value, json};
use stage::{PATIENCE, Running, Stage, real_trainer, said, send, wait_until};

/// Words of a run that lasts until it is stopped.
const ENDLESS: &str = "run run.toml -n 2 --json --set run.steps=1000000 --set validation.every=200 --set checkpoint.every=0";

fn events(run: &Running) -> Vec<Value> {
    // The last line may still be on its way.
    let text = run.out();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Starts an endless run; its address once it has made so many steps.
fn endless(stage: &Stage, steps: usize) -> (Running, String) {
    real_trainer();
    let mut run = stage.start(&mut stage.command(ENDLESS));
    wait_until("the run has made its first steps", || {
        let made = events(&run).iter().filter(|event| event["event"] == "step").count();
        made >= steps || !run.is_running()
    });
    assert!(run.is_running(), "{}{}", run.out(), run.err());
    let started = events(&run).into_iter().find(|event| event["event"] == "started").unwrap();
    let address = started["coordinator"].as_str().unwrap().trim_start_matches("http://").to_owned();
    (run, address)
}

/// The newest process of each rank.
fn trainer(run: &Running, rank: u32) -> u32 {
    let events = events(run);
    let newest = events.iter().rfind(|event| event["event"] == "trainer" && event["rank"] == rank);
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
    open(address, method, path, headers, body).read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_lowercase(), body.to_owned())
}

fn get(address: &str, path: &str) -> (u16, String, String) {
    ask(address, "GET", path, &[], "")
}

fn command(address: &str, command: &str) -> (u16, Value) {
    let headers = ["x-lockstep: 1", "content-type: application/json"];
    let (code, _, body) = ask(address, "POST", "/api/command", &headers, &json!({ "command": command }).to_string());
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
        assert!(code == 200 && head.contains(&format!("content-type: {kind}")), "{path}: {head}");
        assert!(!body.is_empty(), "{path}");
        for safe in ["content-security-policy: default-src 'self'", "x-frame-options: deny", "nosniff"] {
            assert!(head.contains(safe), "{path}: {head}");
        }
        assert!(!head.contains("access-control"), "{path}: {head}");
        for outside in ["https://", "//cdn"] {
            assert!(!body.contains(outside), "{path} names {outside}");
        }
    }
    let (code, _, body) = get(&address, "/nothing");
    assert!(code == 404 && body.contains("the page of the run is at /"), "{body}");

    let (_, _, body) = get(&address, "/metrics");
    let metrics = openmetrics_parser::prometheus::parse_prometheus(&body).unwrap_or_else(|error| panic!("{error}\n{body}"));
    for name in ["step", "loss", "tokens", "phase_seconds", "ranks", "alerts", "total_steps"] {
        assert!(metrics.families.contains_key(&format!("lockstep_{name}")), "{name} is missing in\n{body}");
    }

    // A form of another site cannot set the header, and another name for the loopback is not answered to.
    let (code, _, body) = ask(&address, "POST", "/api/command", &["content-type: application/json"], "{\"command\":\"stop\"}");
    assert!(code == 403 && body.contains("X-Lockstep"), "{body}");
    let (code, _, _) = ask(&address, "GET", "/api/state", &["host: evil.example"], "");
    assert_eq!(code, 421);

    let state = || -> Value { serde_json::from_str(&get(&address, "/api/state").2).unwrap() };
    let (code, answer) = command(&address, "pause");
    assert_eq!((code, answer["sentence"].is_string()), (200, true), "{answer}");
    wait_until("the run is paused", || state()["phase"] == "paused");
    assert_eq!(state()["members"].as_array().unwrap().len(), 2);
    let (code, answer) = command(&address, "checkpoint");
    assert!(code == 409 && answer["error"].as_str().unwrap().contains("no checkpoint now"), "{answer}");
    let (code, answer) = command(&address, "dance");
    assert!(code == 400 && answer["error"].as_str().unwrap().contains("pause, resume, checkpoint, stop"), "{answer}");
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
    let stream = open(&address, "GET", "/api/events?since=0.0.0.0", &["accept: text/event-stream"], "");
    let mut steps = 0;
    let mut kind = String::new();
    let mut is_stopped = false;
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        if let Some(name) = line.strip_prefix("event: ") {
            kind = name.to_owned();
        }
        let Some(data) = line.strip_prefix("data: ") else { continue };
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
    browser.wait_for("the page shows the run", "document.querySelector('#name')?.innerText === 'first'");
    browser.wait_for("steps come in", "Number(document.documentElement.dataset.steps) > 500");
    let steps = "Number(document.documentElement.dataset.steps)";
    let before = browser.value(steps).as_f64().unwrap();
    browser.wait_for("more steps come in", &format!("{steps} > {before}"));
    assert_eq!(browser.text("#phase"), "training");
    browser.wait_for("two members are shown", "document.querySelectorAll('#members tbody tr').length === 2");
    browser.wait_for("charts are shown", "document.querySelectorAll('#grid figure:not([hidden])').length >= 6");
    browser.picture(&pictures().join("live-1440x900.png"));

    browser.click("[data-command=pause]");
    browser.wait_for("the answer is said", "document.querySelector('#said.shown')?.innerText.length > 0");
    browser.wait_for("the page says that it is paused", "document.querySelector('#phase').innerText === 'paused'");
    browser.wait_for("pausing is no choice any more", "document.querySelector('[data-command=pause]').disabled");
    browser.click("[data-command=resume]");
    browser.wait_for("the run trains again", "document.querySelector('#phase').innerText === 'training'");

    let lost = trainer(&run, 1);
    let formed = browser.value("document.querySelectorAll('#generations li').length").as_u64().unwrap();
    send(lost, Signal::KILL);
    browser.wait_for("the loss is told", &format!("document.querySelector('#decisions').innerText.includes('{lost}')"));
    browser.wait_for(
        "the next generation is shown",
        &format!("document.querySelectorAll('#generations li').length > {formed}"),
    );
    wait_until("the rank was started again", || trainer(&run, 1) != lost);
    let again = trainer(&run, 1);
    browser.wait_for("the new member is shown", &format!("document.querySelector('#members').innerText.includes('{again}')"));

    // By keys alone: to the first chart, a read-out, a zoom, and back.
    browser.value("document.querySelector('#whole').previousElementSibling.focus()");
    browser.key("Tab");
    assert_eq!(browser.value("document.activeElement.getAttribute('role')"), "img");
    let label = "document.activeElement.getAttribute('aria-label')";
    browser.key("ArrowLeft");
    browser.wait_for("a step is read out", &format!("{label}.startsWith('Loss, step ') && {label}.includes('training ')"));
    browser.key("+");
    browser.wait_for("the chart is zoomed", "!document.querySelector('#whole').disabled");
    browser.picture(&pictures().join("zoomed-1440x900.png"));
    browser.key("Escape");
    browser.wait_for("the whole run is shown", "document.querySelector('#whole').disabled");
    browser.drag("figure.large .plot", 0.3, 0.6);
    browser.wait_for("dragging zooms", "!document.querySelector('#whole').disabled");
    browser.click("#whole");

    browser.screen(1440, 900, true);
    browser.wait_for("charts are drawn anew", "new Promise((done) => setTimeout(() => done(true), 400))");
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
    browser.click("#yes");
    browser.wait_for("the end is shown", "document.querySelector('#phase').innerText === 'stopped'");
    browser.wait_for("no button is left", "document.querySelectorAll('#commands button').length === 0");
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
    assert!(browser.text("#figures").contains("of 6"), "{}", browser.text("#figures"));
    assert_eq!(browser.value("document.querySelectorAll('#commands button').length"), 0);
    browser.picture(&pictures().join("saved-1440x900.png"));
    browser.is_content();
}
