//! The coordinator as a process, with a run in a folder.
#![allow(dead_code)] // Each test file uses its part.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::AtomicBool;

use lockstep_data::{Options, TokenizerChoice, prepare};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Ends the process by its id when a test fails half-way.
pub(crate) struct Ended(pub(crate) Child);

impl Ended {
    /// The address that it prints when it serves.
    pub(crate) fn address(&mut self) -> String {
        let mut address = String::new();
        let out = self.0.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut address).unwrap();
        address.trim().to_owned()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub(crate) fn command(config: &Path, run_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-coordinator"));
    command
        .args(["--ranks", "2", "--listen", "127.0.0.1:0"])
        .arg("--config")
        .arg(config)
        .arg("--run-dir")
        .arg(run_dir);
    command
}

pub(crate) fn write_config(folder: &Path) -> PathBuf {
    let config = folder.join("config.toml");
    let data = folder.join("data");
    let text = format!(
        r#"
        [run]
        name = "binary"
        steps = 5
        [data]
        path = {:?}
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 2
        schedule = 8
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
        "#,
        data.display().to_string()
    );
    std::fs::write(&config, text).unwrap();
    config
}

/// The config of a run in `folder`, with its data.
pub(crate) fn prepared(folder: &Path) -> PathBuf {
    let (text, out) = (folder.join("text.txt"), folder.join("data"));
    std::fs::write(&text, "All the world's a stage. ".repeat(200)).unwrap();
    let options = Options {
        inputs: vec![text],
        out,
        tokenizer: TokenizerChoice::Byte,
    };
    prepare(&options, &AtomicBool::new(false)).unwrap();
    write_config(folder)
}

/// Ends a process with SIGTERM and gives its exit code.
pub(crate) fn terminated(process: &mut Ended) -> Option<i32> {
    let pid = rustix::process::Pid::from_raw(process.0.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    process.0.wait().unwrap().code()
}

pub(crate) async fn health(address: &str, service: &str) -> ServingStatus {
    let endpoint = tonic::transport::Endpoint::from_shared(address.to_owned()).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let question = HealthCheckRequest {
        service: service.to_owned(),
    };
    client.check(question).await.unwrap().into_inner().status()
}
