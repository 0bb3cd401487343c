//! What is decided about a run on Kubernetes: everything that the objects say and that is not always the same.

use lockstep_config::{Device, RunConfig};

use crate::cli::Overlay;
use crate::ending::Ending;
use crate::k8s::choice::{Choice, backend_fits, image, namespace_fits, ranks, vocabulary};
use crate::k8s::in_pods::{SHARED, in_pods, outside};
use crate::k8s::memory::{Account, MIB, account};
use crate::k8s::names::{fingerprint, object_name};

/// The coordinator's port, where the config leaves it open.
const PORT: u16 = 7000;
/// What a checkpoint is written at, at the least, in bytes a second: a network disk that others use too.
const SLOW_DISK: u64 = 64 * MIB;
/// What is left for all else that a trainer does before it has left.
const LEAVING_SECONDS: u64 = 30;

/// Everything decided.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What starts and replaces trainers.
    pub(crate) overlay: Overlay,
    /// A GPU for each.
    pub(crate) gpu: bool,
    /// TLS, and certificates of both sides.
    pub(crate) tls: bool,
    /// Name of the run's objects.
    pub(crate) name: String,
    /// The namespace, where one was named.
    pub(crate) namespace: Option<String>,
    /// The image of trainers.
    pub(crate) image: String,
    /// The image of a coordinator that is a pod of its own: it needs no libtorch.
    pub(crate) coordinator_image: String,
    /// The config as the pods read it: its paths are theirs.
    pub(crate) config: RunConfig,
    /// Whether the coordinator holds a Lease of the cluster.
    pub(crate) has_lease: bool,
    /// Trainers at the beginning.
    pub(crate) ranks: u32,
    /// The coordinator's port; the next one is that of its health.
    pub(crate) port: u16,
    /// Bytes.
    pub(crate) account: Account,
    /// Seconds that a trainer has to leave.
    pub(crate) grace_seconds: u64,
    /// Whether checkpoints go to a store of objects, whose credentials are in a Secret.
    pub(crate) has_object_store: bool,
    /// Whether the coordinator takes tokens; their hashes are in its Secret.
    pub(crate) has_tokens: bool,
    /// Whether the address of alerts is in the coordinator's Secret.
    pub(crate) has_webhook_file: bool,
    /// TCP ports outside of the run that its pods may reach.
    pub(crate) outside: Vec<u16>,
}

impl Settings {
    /// Decides.
    ///
    /// # Errors
    /// What does not fit, in one sentence.
    pub(crate) fn of(config: &RunConfig, choice: &Choice) -> Result<Settings, Ending> {
        let gpu = choice.gpu || config.run.device == Device::Cuda;
        let ranks = ranks(choice.ranks, config)?;
        backend_fits(config, choice.overlay, gpu)?;
        namespace_fits(choice.namespace.as_deref())?;
        if config.security.tokens.is_some() && !choice.tls {
            return Err(Ending::BadInput(
                "security.tokens needs --tls: a token is never sent in clear from pod to pod".to_owned(),
            ));
        }
        let least = match choice.overlay {
            Overlay::Elastic => config.fault.min_ranks,
            // A lost trainer is replaced, and until then the others have its share.
            _ => ranks.saturating_sub(1).max(config.fault.min_ranks),
        };
        let account = account(config, vocabulary(config)?, least.clamp(1, ranks))?;
        let port = match config.coordinator.bind.port() {
            0 => PORT,
            u16::MAX => {
                return Err(Ending::BadInput(
                    "coordinator.bind: port 65535 leaves none for the coordinator's health, which is the next one; take a \
                     lower one"
                        .to_owned(),
                ));
            }
            port => port,
        };
        let has_object_store = config
            .checkpoint
            .store
            .as_ref()
            .is_some_and(|store| store.starts_with("s3://"));
        Ok(Settings {
            overlay: choice.overlay,
            gpu,
            tls: choice.tls,
            name: object_name(&config.run.name),
            namespace: choice.namespace.clone(),
            image: image(choice.image.as_deref(), choice.overlay, gpu)?,
            coordinator_image: image(choice.image.as_deref(), Overlay::Elastic, false)?,
            // mpirun's coordinator is in the launcher, of which its operator has one.
            has_lease: choice.lease && choice.overlay != Overlay::Mpijob,
            ranks,
            port,
            account,
            grace_seconds: config.fault.patience_seconds.ceil() as u64
                + LEAVING_SECONDS
                + account.state.div_ceil(SLOW_DISK),
            has_object_store,
            has_tokens: config.security.tokens.is_some(),
            has_webhook_file: config.alerts.webhook_file.is_some(),
            outside: outside(config, has_object_store),
            config: in_pods(config, has_object_store),
        })
    }

    /// The folder that trainers are told is the run's.
    pub(crate) fn run_dir(&self) -> String {
        format!("{SHARED}/runs/{}", self.config.run.name)
    }

    /// The name of the coordinator's Service, which is its address inside the namespace.
    pub(crate) fn coordinator(&self) -> String {
        format!("{}-coordinator", self.name)
    }

    /// The coordinator's address.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.coordinator(), self.port)
    }

    /// Where the coordinator's health can be asked for, always in clear: it says that somebody serves, and nothing of the
    /// run.
    pub(crate) fn health_port(&self) -> u16 {
        self.port + 1
    }

    /// Bytes of `/dev/shm`, which count as the trainer's memory: a gradient buffer passes through it in pieces, over NCCL and
    /// over MPI. The host backend needs none of it.
    pub(crate) fn shared_memory(&self) -> u64 {
        let least = if self.gpu { 1024 * MIB } else { 64 * MIB };
        (64 * MIB + self.account.gradients)
            .next_multiple_of(64 * MIB)
            .max(least)
    }

    /// Bytes that a trainer may have, `/dev/shm` among them.
    pub(crate) fn trainer_memory(&self) -> u64 {
        self.account.trainer + self.shared_memory()
    }

    /// GiB of the shared volume: every checkpoint that stays, one that is written, and the final weights, and as much again.
    pub(crate) fn shared_gib(&self) -> u64 {
        let checkpoints = self.config.checkpoint.keep_last + 2;
        (2 * checkpoints * self.account.state).div_ceil(1024 * MIB).max(1)
    }

    /// Changes when the config does, so that pods are made anew with it.
    pub(crate) fn config_fingerprint(&self) -> String {
        fingerprint(self.config.to_toml().as_bytes())
    }

    /// The first lines of a stream.
    pub(crate) fn heading(&self) -> String {
        let mut lines = vec![format!(
            "Run {} as {}, made by lockstep {}: change the config and render it again.",
            self.config.run.name,
            self.overlay.word(),
            env!("CARGO_PKG_VERSION")
        )];
        lines.extend(self.warnings());
        lines.iter().map(|line| format!("# {line}\n")).collect()
    }

    /// What a person should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.tls {
            warnings.push(
                "the coordinator talks without TLS and asks nobody who he is (security.insecure_bind); only a NetworkPolicy keeps \
                 others away, where the cluster's network plug-in has such policies"
                    .to_owned(),
            );
        }
        warnings
    }
}
