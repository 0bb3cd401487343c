//! The coordinator as a process that is killed and started again on the folder of its run.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::stage::{Stage, real_trainer, said, wait_until};
use crate::{ByHand, SETS, calm, hashes, lines};

/// A coordinator at a port of its own. It is killed when this is dropped.
struct Coordinator<'a> {
    stage: &'a Stage,
    name: &'static str,
    steps: u32,
    address: String,
    child: Child,
}

impl<'a> Coordinator<'a> {
    fn start(stage: &'a Stage, name: &'static str, steps: u32) -> Coordinator<'a> {
        // Nobody else takes it in the moment in which it is free: ports of closed listeners are not given out at once.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let child = spawn(stage, name, steps, &address);
        Coordinator {
            stage,
            name,
            steps,
            address,
            child,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = spawn(self.stage, self.name, self.steps, &self.address);
    }

    /// Waits until `step` is committed.
    fn reach(&mut self, step: u64) {
        wait_until(&format!("step {step} is committed"), || {
            assert!(self.child.try_wait().unwrap().is_none(), "the coordinator has ended");
            let path = self.stage.path(&format!("runs/{}/metrics.jsonl", self.name));
            path.is_file()
                && lines(self.stage, self.name)
                    .last()
                    .is_some_and(|line| line["step"].as_u64().unwrap() >= step)
        });
    }

    fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the coordinator has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// The generation that made each step.
    fn generations(&self) -> Vec<u64> {
        let number = |line: &serde_json::Value| line["generation"].as_u64().unwrap();
        lines(self.stage, self.name).iter().map(number).collect()
    }
}

impl Drop for Coordinator<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> PathBuf {
    real_trainer().with_file_name("lockstep-coordinator")
}

fn command(stage: &Stage, name: &str, steps: u32, address: &str) -> Command {
    let sets = format!("{SETS} --set run.steps={steps} --set run.name={name} --set fault.patience_seconds=20");
    let mut command = Command::new(binary());
    command
        .args(["--config", "run.toml", "--ranks", "2", "--listen", address])
        .args(["--run-dir", &format!("runs/{name}")])
        .args(sets.split_whitespace())
        .current_dir(stage.path(""));
    command
}

fn spawn(stage: &Stage, name: &str, steps: u32, address: &str) -> Child {
    let mut command = command(stage, name, steps, address);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn a_killed_coordinator_is_started_again_and_no_step_is_made_twice() {
    let stage = Stage::new();
    let expected = calm(&stage, 120);
    let mut coordinator = Coordinator::start(&stage, "again", 120);
    let _trainers = ["trainer-0", "trainer-1"].map(|member| ByHand::start(&stage, &coordinator.url(), member));
    for step in [20, 60] {
        coordinator.reach(step);
        coordinator.kill();
        std::thread::sleep(std::time::Duration::from_millis(300));
        coordinator.start_again();
    }
    assert_eq!(coordinator.wait(), Some(0));
    assert!(hashes(&stage, "again") == expected, "other bits");
    let generations = coordinator.generations();
    assert!(
        generations.iter().all(|generation| *generation == 1),
        "the generation goes on in every term: {generations:?}"
    );
    for proof in ["audit", "replay"] {
        let output = stage.lockstep(&format!("ledger {proof} runs/again"));
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    // The run is over, and who starts it once more is told so.
    coordinator.start_again();
    assert_eq!(coordinator.wait(), Some(0));
}

#[test]
fn coordinator_and_trainer_killed_at_once_are_both_replaced() {
    let stage = Stage::new();
    let expected = calm(&stage, 100);
    let mut coordinator = Coordinator::start(&stage, "both", 100);
    let url = coordinator.url();
    let _zero = ByHand::start(&stage, &url, "trainer-0");
    let one = ByHand::start(&stage, &url, "trainer-1");
    coordinator.reach(30);
    coordinator.kill();
    drop(one);
    let _two = ByHand::start(&stage, &url, "trainer-2");
    coordinator.start_again();
    assert_eq!(coordinator.wait(), Some(0));
    assert!(hashes(&stage, "both") == expected, "other bits");
}

#[test]
fn a_second_coordinator_of_a_run_is_refused_and_names_the_first() {
    let stage = Stage::new();
    let coordinator = Coordinator::start(&stage, "twice", 50);
    wait_until("the ledger is there", || stage.path("runs/twice/ledger.redb").is_file());
    let output = command(&stage, "twice", 50, "127.0.0.1:0").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // Nothing that was given is wrong, and the same start succeeds when the first one has gone: whoever starts it may try again.
    assert_eq!(output.status.code(), Some(1), "{said}");
    let pid = coordinator.child.id().to_string();
    assert!(said.contains("in use") && said.contains(&pid), "{said}");
}
