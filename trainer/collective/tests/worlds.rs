//! The same bits on any world: random scripts of collectives, played by ranks as threads and as processes, against one
//! process that adds and copies by the definition. Every rank checks all that it receives.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::thread;

use lockstep_collective::{Backend, Collective, Meeting, Root, Transport, connect, join as meet, new_id};
use lockstep_collective_script::{PATIENCE, Player, Script, patient};
use rand::Rng;

fn join(backend: Backend, id: &[u8], rank: u32, size: u32) -> Box<dyn Collective> {
    connect(backend, id, rank, size, PATIENCE, &patient()).unwrap()
}

fn play_as_threads(seed: u64, backend: Backend) {
    let script = Script::new(seed);
    let id = new_id(&[3; 32], seed).unwrap();
    thread::scope(|scope| {
        for rank in 0..script.size {
            let (script, id) = (&script, &id);
            scope.spawn(move || Player::new(script, join(backend, id, rank, script.size)).play());
        }
    });
}

#[test]
fn ranks_as_threads_get_the_bits_of_one_process() {
    let first: u64 = rand::rng().random_range(0..1 << 40);
    println!("seeds {first} to {}", first + 79);
    (first..first + 80).for_each(|seed| play_as_threads(seed, Backend::Host));
}

#[test]
fn one_rank_gets_them_from_the_solo_backend_too() {
    let first: u64 = rand::rng().random_range(0..1 << 40);
    let seeds: Vec<u64> = (first..).filter(|seed| Script::new(*seed).size == 1).take(12).collect();
    println!("seeds {seeds:?}");
    seeds.into_iter().for_each(|seed| play_as_threads(seed, Backend::Solo));
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Joins rank `rank` of a world over TCP; `only_tcp` says whether ranks of this host use it among themselves.
fn join_over_tcp(root: Option<Root>, id: &[u8], rank: u32, size: u32, only_tcp: bool) -> Box<dyn Collective> {
    let aborter = patient();
    let meeting = Meeting {
        rank,
        size,
        deadline: PATIENCE,
        root,
        advertise: Some(LOOPBACK),
        only_tcp,
        aborter: Some(&aborter),
        ..Meeting::default()
    };
    meet(Backend::Host, id, meeting).unwrap()
}

#[test]
fn ranks_over_tcp_get_the_bits_of_one_process() {
    let first: u64 = rand::rng().random_range(0..1 << 40);
    println!("seeds {first} to {}", first + 39);
    for seed in first..first + 40 {
        let script = Script::new(seed);
        let root = Root::open(&[3; 32], seed, LOOPBACK).unwrap();
        let id = root.id().to_bytes();
        let mut root = Some(root);
        thread::scope(|scope| {
            for rank in 0..script.size {
                let (script, id, root) = (&script, &id, root.take());
                scope.spawn(move || {
                    let collective = join_over_tcp(root, id, rank, script.size, true);
                    let tcp = |peer| (peer != rank).then_some(Transport::Tcp);
                    assert_eq!(collective.transports(), (0..script.size).map(tcp).collect::<Vec<_>>());
                    Player::new(script, collective).play();
                });
            }
        });
    }
}

#[test]
fn ranks_of_one_host_that_could_use_tcp_share_memory() {
    let root = Root::open(&[3; 32], 1, LOOPBACK).unwrap();
    let id = root.id().to_bytes();
    let mut root = Some(root);
    thread::scope(|scope| {
        for rank in 0..3 {
            let (id, root) = (&id, root.take());
            scope.spawn(move || {
                let collective = join_over_tcp(root, id, rank, 3, false);
                let shared = |peer| (peer != rank).then_some(Transport::SharedMemory);
                assert_eq!(collective.transports(), (0..3).map(shared).collect::<Vec<_>>());
            });
        }
    });
}

const ENVIRONMENT: &str = "LOCKSTEP_WORLDS_RANK";

#[test]
fn ranks_as_processes_get_the_bits_of_one_process() {
    let first: u64 = rand::rng().random_range(0..1 << 40);
    println!("seeds {first} to {}", first + 19);
    for seed in first..first + 20 {
        let id: String = new_id(&[3; 32], seed)
            .unwrap()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let ranks: Vec<_> = (0..Script::new(seed).size)
            .map(|rank| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--ignored", "--exact", "--nocapture", "one_rank_of_a_script"])
                    .env(ENVIRONMENT, format!("{seed} {rank} {id}"))
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let results: Vec<_> = ranks.into_iter().map(|mut rank| rank.wait().unwrap()).collect();
        assert!(
            results.iter().all(|status| status.success()),
            "seed {seed}: {results:?}"
        );
    }
}

#[test]
#[ignore = "a rank, started as a process by ranks_as_processes_get_the_bits_of_one_process"]
fn one_rank_of_a_script() {
    let place = std::env::var(ENVIRONMENT).unwrap();
    let mut words = place.split(' ');
    let seed = words.next().unwrap().parse().unwrap();
    let rank = words.next().unwrap().parse().unwrap();
    let id = words.next().unwrap();
    let id: Vec<u8> = (0..id.len() / 2)
        .map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let script = Script::new(seed);
    Player::new(&script, join(Backend::Host, &id, rank, script.size)).play();
}
