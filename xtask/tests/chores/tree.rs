//! A small checkout: the real xtask, and stand-ins for what it starts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Says what it was asked, fails where `FAIL` names its first word, and leaves a run's files. A run waits for an
/// interruption where `WAIT` names a folder for its marks, and diverges or breaks at the rates `DIVERGE` and `BREAK`.
const LOCKSTEP: &str = r#"#!/bin/sh
echo "$@" >> "${ASKED:-asked.txt}"
[ "$FAIL" = "$1" ] && { echo "lockstep: no" >&2; exit 1; }
case "$1" in
data)
    while [ "$1" != --out ]; do shift; done
    mkdir -p "$2" ;;
run)
    for word in "$@"; do case "$word" in run.name=*) name=${word#run.name=} ;; run.seed=*) seed=${word#run.seed=} ;; esac; done
    if [ -n "$WAIT" ]; then
        trap 'sleep 0.2; touch "$WAIT/stopped-$name"; exit 3' INT
        touch "$WAIT/started-$name"
        for _ in $(seq 600); do sleep 0.1; done
    fi
    case "$*" in
    *"peak = $DIVERGE,"*) echo "error: run $name failed: step 2: the loss is NaN; no parameter has changed" >&2; exit 1 ;;
    *"peak = $BREAK,"*) echo "error: run $name failed: rank 0 was killed by signal 9" >&2; exit 1 ;;
    esac
    mkdir -p "runs/$name/final"
    for step in 1 2 3 4 5; do
        echo "{\"step\":$step,\"tokens\":$((step * 2048)),\"loss\":$((9 - step)).5,\"step_ms\":500,\"phases\":{\"forward_ms\":200}}"
    done > "runs/$name/metrics.jsonl"
    echo '{"step":3,"validation_loss":5.5}' >> "runs/$name/metrics.jsonl"
    echo "{\"step\":5,\"validation_loss\":${LAST:-4.25}}" >> "runs/$name/metrics.jsonl"
    echo "{\"peak_memory_mib\":700,\"tokens_per_second\":4096.0,\"training_seconds\":2.5,\"validation_loss\":2.${seed:-5}}" \
        > "runs/$name/summary.json" ;;
inspect)
    echo "rank  lanes   polar cost   share  other elements  master + state"
    for rank in $(seq 0 $(($4 - 1))); do
        echo "$rank     $rank..$((rank + 1))    $(((rank + 1) * 1000000))      50.0%  9              1$rank.5 MiB"
    done ;;
generate)
    echo "ROMEO: I dream." ;;
esac
"#;

const PEER: &str = r#"#!/bin/sh
echo "$OMP_NUM_THREADS $*" >> asked.txt
echo '{"tokens_per_second": 2048.0, "step_ms": 1000.0, "forward_ms": 400.0, "peak_memory_mib": 1400}'
"#;

/// A program that is being written cannot be started, and for a moment a process that another test starts holds all
/// files open that this one writes: so one tree at a time.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) struct Tree {
    _turn: MutexGuard<'static, ()>,
    folder: tempfile::TempDir,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        let tree = Tree {
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
            folder: tempfile::tempdir().unwrap(),
        };
        for file in [
            "Cargo.toml",
            "xtask/Cargo.toml",
            "libtorch/lib/libtorch_cpu.so",
            "libtorch/include/torch.h",
        ] {
            tree.write(file, "");
        }
        tree.write("libtorch/build-version", "2.13.0+cpu\n");
        tree.program("cargo", "#!/bin/sh\n[ \"$FAIL\" = cargo ] && exit 101\nexit 0\n");
        tree.program("target/release/lockstep", LOCKSTEP);
        tree.program("python", PEER);
        tree.write("peer.py", "");
        fs::copy(env!("CARGO_BIN_EXE_xtask"), tree.path("target/release/xtask")).unwrap();
        tree
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        self.write(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(self.path("target/release/xtask"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("CARGO", self.path("cargo"))
            .env("LIBTORCH", self.path("libtorch"))
            .envs(environment.iter().copied());
        command
    }

    pub(crate) fn xtask(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        self.command(arguments, environment).output().unwrap()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until there is a file at `path`.
pub(crate) fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}
