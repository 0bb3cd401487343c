//! The same bits through NCCL's calls: the random scripts of every backend, over the double, on devices of host memory. Polls
//! are random, streams are held up at random, and every rule of the double holds to the end.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use accelerator_double::{HostAccelerator, double, nccl};

use lockstep_collective::{
    Accelerator, Backend, Collective, CollectiveError, Meeting, Stream, Transport, join, new_nccl_id,
};
use lockstep_collective_script::{PATIENCE, Player, Script, patient};
use nccl_rs::UniqueId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn meet(id: &[u8], rank: u32, size: u32, device: Arc<HostAccelerator>) -> Result<Box<dyn Collective>, CollectiveError> {
    let aborter = patient();
    let meeting = Meeting {
        rank,
        size,
        deadline: PATIENCE,
        stall: Some(PATIENCE),
        aborter: Some(&aborter),
        accelerator: Some(device),
        nccl: Some(nccl()),
        ..Meeting::default()
    };
    join(Backend::Nccl, id, meeting)
}

/// Holds streams of the devices now and then until it is told to end.
fn hold_up(seed: u64, devices: &[Arc<HostAccelerator>], ended: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    while !ended.load(Ordering::Relaxed) {
        let device = &devices[random.random_range(0..devices.len())];
        let stream = match random.random() {
            true => Stream::Compute,
            false => Stream::Communication,
        };
        double().hold(device.native(stream), true);
        thread::sleep(Duration::from_micros(random.random_range(0..400)));
        double().hold(device.native(stream), false);
        thread::sleep(Duration::from_micros(random.random_range(0..400)));
    }
}

fn play(seed: u64, size: u32) {
    let mut random = StdRng::seed_from_u64(seed);
    let script = Script::with_size(seed, size);
    let id = new_nccl_id(&nccl()).unwrap();
    let world = UniqueId::from_bytes(&id).unwrap();
    double().set_polls(&world, random.random_range(0..4), random.random_range(0..5));
    let devices: Vec<_> = (0..size).map(|_| HostAccelerator::new()).collect();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let (script, id, ended, devices) = (&script, &id, &ended, &devices);
        let held: Option<_> = random
            .random_bool(0.5)
            .then(|| scope.spawn(move || hold_up(seed, devices, ended)));
        let ranks: Vec<_> = (0..size)
            .map(|rank| {
                scope.spawn(move || {
                    let device = &devices[rank as usize];
                    let collective = meet(id, rank, size, Arc::clone(device)).unwrap();
                    let over = |peer| (peer != rank).then_some(Transport::Nccl);
                    assert_eq!(collective.transports(), (0..size).map(over).collect::<Vec<_>>());
                    let device = Arc::clone(device);
                    Player::on_device(script, collective, device).play();
                })
            })
            .collect();
        let played: Vec<bool> = ranks.into_iter().map(|rank| rank.join().is_ok()).collect();
        ended.store(true, Ordering::Relaxed);
        if let Some(held) = held {
            held.join().unwrap();
        }
        assert!(played.iter().all(|well| *well), "seed {seed} with {size} ranks");
    });
    let offences: u32 = devices.iter().map(|device| device.offences()).sum();
    assert_eq!(offences, 0, "seed {seed}: something came before NCCL's success");
    let left = (double().live(&world), double().misuse(&world), double().strangers());
    assert_eq!(left, (0, 0, 0), "seed {seed}: communicators left, misused, unknown");
}

#[test]
fn every_world_gets_the_bits_of_one_process() {
    let first: u64 = rand::rng().random_range(0..1 << 40);
    println!("seeds {first} to {}", first + 63);
    for seed in first..first + 64 {
        play(seed, 1 + (seed % 8) as u32);
    }
}
