//! One run, the same hash at every step: on any number of ranks of one host, over shared memory and over TCP, and on four
//! ranks of two hosts, which are two network namespaces made and removed here.
#![allow(clippy::unwrap_used)]

mod stage;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use stage::hosts::{ADDRESSES, Hosts};
use stage::{Running, Stage, real_trainer, said, wait_until};

/// Eight lanes, so that eight ranks find work.
const SETS: &str = "--set run.lanes=8 --set run.steps=20 --set run.precision=bf16 --set optimizer.method=muonmax \
                    --set batch.schedule=16 --set validation.every=0";

/// The parameter hash of every step.
fn hashes(stage: &Stage, name: &str) -> Vec<String> {
    let metrics = stage.read(&format!("runs/{name}/metrics.jsonl"));
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter_map(|line| Some(line["parameter_hash"].as_str()?.to_owned()))
        .collect()
}

fn run(stage: &Stage, name: &str, words: &str) -> Vec<String> {
    let output = stage.lockstep(&format!("run run.toml {SETS} --set run.name={name} {words}"));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    hashes(stage, name)
}

#[test]
fn every_step_has_the_same_hash_on_1_2_3_4_and_8_ranks_over_shared_memory_and_over_tcp() {
    real_trainer();
    let stage = Stage::new();
    let alone = run(&stage, "alone", "-n 1");
    assert_eq!(alone.len(), 20);
    for ranks in [2, 3, 4, 8] {
        assert_eq!(
            run(&stage, &format!("shared-{ranks}"), &format!("-n {ranks}")),
            alone,
            "{ranks} ranks"
        );
    }
    let tcp = "-n 3 --set collective.transport=tcp";
    assert_eq!(run(&stage, "tcp", tcp), alone, "3 ranks over TCP");
    let in_turn = "-n 2 --set collective.overlap=false";
    assert_eq!(run(&stage, "in-turn", in_turn), alone, "2 ranks without overlap");
}

/// Until the coordinator serves other hosts, a relay stands for it on the second one: a socket stays in the namespace in
/// which it was made, so one thread can stand in both. It ends with the test.
fn relay(hosts: &Hosts, port: u16) -> u16 {
    let handles = [0, 1].map(|host| File::open(hosts.handle(host)).unwrap());
    let (told, heard) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let go = |host: usize| move_into_link_name_space(handles[host].as_fd(), Some(LinkNameSpaceType::Network));
        go(1).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        told.send(listener.local_addr().unwrap().port()).unwrap();
        go(0).unwrap();
        for here in listener.incoming().map_while(Result::ok) {
            let Ok(there) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            let (here, there) = (Arc::new(here), Arc::new(there));
            for (from, to) in [(Arc::clone(&here), Arc::clone(&there)), (there, here)] {
                thread::spawn(move || pass(&from, &to));
            }
        }
    });
    heard.recv().unwrap()
}

fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// What status says once all ranks have met.
const REACHED: &str = "shared memory (2 pairs), tcp (4 pairs)";

#[test]
fn two_ranks_on_each_of_two_hosts_make_the_hashes_of_one_rank() {
    real_trainer();
    if !rustix::process::geteuid().is_root() {
        println!("not checked: only root can make network namespaces");
        return;
    }
    let stage = Stage::new();
    let alone = run(&stage, "alone", "-n 1");
    let hosts = Hosts::new();
    let words = format!("--config run.toml {SETS} --set run.name=apart --run-dir runs/apart --ranks 4");
    let mut coordinator = stage.start(&mut hosts.command(0, &stage, "lockstep-coordinator", &words));
    wait_until("the coordinator serves", || {
        assert!(coordinator.is_running(), "{}", coordinator.err());
        coordinator.out().contains('\n')
    });
    let port: u16 = coordinator.out().trim().rsplit(':').next().unwrap().parse().unwrap();
    let ports = [port, relay(&hosts, port)];
    let mut trainers: Vec<Running> = (0..4)
        .map(|number| {
            let host = number % 2;
            let (port, address) = (ports[host], ADDRESSES[host]);
            let words = format!(
                "train --coordinator http://127.0.0.1:{port} --member trainer-{number} --run-dir runs/apart \
                 --advertise {address}"
            );
            stage.start(&mut hosts.command(host, &stage, "lockstep-trainer", &words))
        })
        .collect();
    let mut status = String::new();
    wait_until("ranks reach each other", || {
        let words = format!("status --coordinator http://127.0.0.1:{port}");
        let output = hosts.command(0, &stage, "lockstep", &words).output().unwrap();
        let now = said(&output);
        let known = now.contains(REACHED);
        if output.status.success() {
            status = now;
        }
        known || !coordinator.is_running()
    });
    for (number, trainer) in trainers.iter_mut().enumerate() {
        assert_eq!(
            trainer.wait(),
            0,
            "trainer-{number}: {}{}",
            trainer.out(),
            trainer.err()
        );
    }
    assert_eq!(coordinator.wait(), 0, "{}", coordinator.err());
    assert!(
        status.contains(REACHED),
        "two ranks of a host share memory, the others do not: {status}"
    );
    assert_eq!(hashes(&stage, "apart"), alone);
}
