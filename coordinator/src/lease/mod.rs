//! The Lease of a coordinator on Kubernetes: who coordinates the run, where the cluster and its people can see it.
//!
//! Two coordinators of one run are kept apart by the lock on the ledger, and trainers refuse the lower term. The lock stands on
//! the file system of the ledger's volume, which on some clusters several pods can mount and which keeps no locks between
//! nodes. With a Lease a second pod does not even begin: it waits until the first has ended, or has been silent for as long as
//! the Lease says, and the first ends when it reads that another has it.
//!
//! Way of data: the account that Kubernetes mounts into the pod → [`cluster`], which reads and writes the one Lease, and of two
//! that write at once lets one → [`record`], which says whose it is → [`Lease::acquire`], before the ledger is opened →
//! [`Keeper`], a thread that renews it. A cluster that does not answer takes nobody's Lease away: its control plane may be gone
//! for a while, and training goes on. Then lock and terms are what there is, as without a Lease.

mod cluster;
mod record;

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use cluster::{Cluster, Refusal};
use record::{Patience, Record, Verdict};

/// Between two questions of one who waits.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two renewals: three go into the time after which a silent holder has lost it.
const PERIOD: Duration = Duration::from_secs(5);
/// How long giving it up may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where the Lease is, and as whom this process holds it.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// Its name, in the pod's own namespace.
    pub name: String,
    /// The holder: another one in every pod, such as its uid.
    pub holder: String,
    /// The folder with the pod's account: `token`, `ca.crt`, `namespace`.
    pub account: PathBuf,
}

/// Why there is no Lease to be had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The account is not mounted.
    #[error("--lease: cannot read {} of the pod's account: {cause}; its service account must be mounted", path.display())]
    Account {
        /// The file.
        path: PathBuf,
        /// Of the system.
        cause: std::io::Error,
    },
    /// This is no pod.
    #[error(
        "--lease: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT do not say where the cluster is: only a pod has a Lease"
    )]
    NoCluster,
    /// The client cannot be made.
    #[error("--lease: cannot make a client for the cluster: {0}")]
    Client(String),
    /// It is not there.
    #[error("--lease: there is no Lease {0} in this namespace; it is made with the run's other objects")]
    Missing(String),
    /// The account has not the right.
    #[error(
        "--lease: the cluster refuses the Lease {name} to this pod's account: {said}; a Role must let it get and update that Lease"
    )]
    Denied {
        /// Its name.
        name: String,
        /// What the cluster said.
        said: String,
    },
}

/// A Lease that this process holds.
#[derive(Debug)]
pub struct Lease {
    cluster: Cluster,
    holder: String,
    record: Record,
}

impl Lease {
    /// Waits until it is this process's; while it waits, says once for each holder on whom.
    ///
    /// # Errors
    /// What no waiting changes.
    pub async fn acquire(options: &LeaseOptions) -> Result<Lease, LeaseError> {
        let cluster = Cluster::of_pod(options)?;
        let mut patience = Patience::default();
        let mut said = String::new();
        let mut say = |sentence: String| {
            if sentence != said {
                tracing::info!("{sentence}");
                said = sentence;
            }
        };
        loop {
            let answer = match cluster.read().await {
                Ok(record) => match patience.verdict(&record, &options.holder, Instant::now()) {
                    Verdict::Free => cluster.write(&record.held(&options.holder, SystemTime::now())).await,
                    Verdict::Held(by) => {
                        say(format!("waiting for the Lease {}, which {by} has", options.name));
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
                Err(refusal) => Err(refusal),
            };
            match answer {
                Ok(record) => {
                    return Ok(Lease {
                        cluster,
                        holder: options.holder.clone(),
                        record,
                    });
                }
                // Another one was first.
                Err(Refusal::Conflict) => {}
                Err(Refusal::Missing) => return Err(LeaseError::Missing(options.name.clone())),
                Err(Refusal::Denied(said)) => {
                    return Err(LeaseError::Denied {
                        name: options.name.clone(),
                        said,
                    });
                }
                Err(Refusal::Away(why)) => {
                    patience.gap();
                    say(format!(
                        "waiting for the cluster, to have the Lease {}: {why}",
                        options.name
                    ));
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Renews it from now on, until it is given up; calls `lost` with a sentence when another one has it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn keep(self, lost: impl FnOnce(&str) + Send + 'static) -> std::io::Result<Keeper> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, ordered) = unbounded_channel();
        std::thread::Builder::new()
            .name("coordinator-lease".to_owned())
            .spawn(move || {
                if let Some(sentence) = runtime.block_on(self.renew(ordered)) {
                    lost(&sentence);
                }
            })?;
        Ok(Keeper { orders })
    }

    /// Until it is given up, or lost; then with a sentence.
    async fn renew(mut self, mut ordered: UnboundedReceiver<std::sync::mpsc::Sender<()>>) -> Option<String> {
        let mut was_away = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                order = ordered.recv() => {
                    if let Some(done) = order {
                        // Who waits for it does so for a while longer, where the cluster does not answer.
                        let _released = self.cluster.write(&self.record.released(SystemTime::now())).await;
                        // Nobody may be waiting any more.
                        let _told = done.send(());
                    }
                    return None;
                }
            }
            let mut answer = self
                .cluster
                .write(&self.record.held(&self.holder, SystemTime::now()))
                .await;
            if matches!(answer, Err(Refusal::Conflict)) {
                answer = self.cluster.read().await;
            }
            match answer {
                Ok(record) if record.holder() == Some(self.holder.as_str()) => {
                    self.record = record;
                    was_away = false;
                }
                Ok(record) => {
                    let by = record.holder().unwrap_or("nobody");
                    return Some(format!(
                        "{by} has the Lease now: this coordinator ends, and the run goes on under that one"
                    ));
                }
                Err(refusal) => {
                    if !was_away {
                        tracing::warn!(
                            "the Lease cannot be renewed, and the run goes on without: {}",
                            refusal.sentence()
                        );
                    }
                    was_away = true;
                }
            }
        }
    }
}

/// Renews a Lease. Dropped, it renews no more, and the Lease runs out.
#[derive(Debug)]
pub struct Keeper {
    orders: UnboundedSender<std::sync::mpsc::Sender<()>>,
}

impl Keeper {
    /// Gives the Lease up, so that the next coordinator need not wait until it has run out.
    pub fn release(&self) {
        let (done, is_done) = channel();
        if self.orders.send(done).is_ok() {
            // After that it runs out by itself.
            let _in_time = is_done.recv_timeout(FAREWELL);
        }
    }
}
