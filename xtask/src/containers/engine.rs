//! A container engine: the one that answers, or else Docker's, started for this chore alone.
//!
//! Its data, sockets and log are in a folder of its own for temporary things, and go with it. It makes no network: containers
//! of this chore have the machine's, so nothing is changed in the machine's routes and filters.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{Failure, on_path};
use crate::process;
use crate::setup::tools;

/// Says to `docker` where the engine is.
const VARIABLE: &str = "DOCKER_HOST";
/// How long an engine may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What builds and runs containers.
pub(super) struct Engine {
    /// The one that was started, and where it is.
    own: Option<Daemon>,
}

struct Daemon {
    process: Child,
    folder: PathBuf,
    address: String,
}

impl Engine {
    /// The engine that answers to `docker` as it is, or a new one.
    pub(super) fn find() -> Result<Engine, Failure> {
        if answers(&Engine { own: None }) {
            return Ok(Engine { own: None });
        }
        let may_install = tools::may_install();
        if !has_daemon() && may_install {
            tools::install(&["docker.io"])?;
        }
        if !has_daemon() || !rustix::process::geteuid().is_root() {
            return Err(Failure::input(
                "no container engine answers to `docker version`; start one, or run this as root where the program dockerd is \
                 (Debian's package docker.io), and it is started for this",
            ));
        }
        Engine::start()
    }

    fn start() -> Result<Engine, Failure> {
        let folder = std::env::temp_dir().join(format!("lockstep-engine-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(on_path("create", &folder))?;
        let file = folder.join("log");
        let log = File::create(&file).map_err(on_path("create", &file))?;
        let errors = log.try_clone().map_err(on_path("open", &file))?;
        let address = format!("unix://{}", folder.join("socket").display());
        let mut command = Command::new("dockerd");
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(flag).arg(folder.join(name));
        }
        command.args([
            "--host",
            &address,
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
        ]);
        println!(
            "no container engine answers, so one is started for this: dockerd in {}",
            folder.display()
        );
        let process = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| Failure::work(format!("cannot start dockerd: {error}")))?;
        let mut engine = Engine {
            own: Some(Daemon {
                process,
                folder,
                address,
            }),
        };
        let begun = Instant::now();
        while !answers(&engine) {
            if begun.elapsed() > PATIENCE || engine.has_ended() {
                return Err(Failure::work(format!(
                    "dockerd does not answer; the end of what it says:\n{}",
                    end_of(&file)
                )));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(engine)
    }

    fn has_ended(&mut self) -> bool {
        let status = self.own.as_mut().map(|daemon| daemon.process.try_wait());
        !matches!(status, None | Some(Ok(None)))
    }

    /// `docker`, at this engine.
    pub(super) fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        self.let_in(&mut command);
        command
    }

    /// Says to a program where the engine is.
    pub(super) fn let_in(&self, command: &mut Command) {
        if let Some(daemon) = &self.own {
            command.env(VARIABLE, &daemon.address);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(daemon) = &mut self.own else {
            return;
        };
        // Asked, so that it unmounts what it has mounted and ends the process that it has started.
        if let Some(pid) = rustix::process::Pid::from_raw(daemon.process.id().cast_signed()) {
            // Fails only where it has ended.
            let _asked = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(daemon.process.try_wait(), Ok(None)) && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
        // Fail only where it has ended.
        let _killed = daemon.process.kill();
        let _reaped = daemon.process.wait();
        unmount(&daemon.folder);
        if let Err(error) = fs::remove_dir_all(&daemon.folder) {
            println!("{} is left: {error}", daemon.folder.display());
        }
    }
}

/// What an engine has mounted below its folder and leaves there: the network of the machine under a name, and layers.
fn unmount(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|place| Path::new(place).starts_with(folder));
    // Inner ones were mounted later.
    for place in places.collect::<Vec<_>>().into_iter().rev() {
        let mut command = Command::new("umount");
        // Whatever stays mounted is said when the folder cannot be removed.
        let _unmounted = process::captured("`umount`", command.arg(place));
    }
}

fn answers(engine: &Engine) -> bool {
    let mut command = engine.docker();
    command.args(["version", "--format", "{{.Server.Version}}"]);
    command.stderr(Stdio::null());
    process::captured("`docker version`", &mut command).is_ok_and(|output| output.status.success())
}

fn has_daemon() -> bool {
    let mut command = Command::new("dockerd");
    command.arg("--version").stderr(Stdio::null());
    process::captured("`dockerd --version`", &mut command).is_ok_and(|output| output.status.success())
}

fn end_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
