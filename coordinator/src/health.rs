//! Health in clear, at an address of its own: for probes, which speak no TLS and show no token.
//!
//! It says two things, by the health service of gRPC. For the service `lockstep.v1.Training`: whether trainers are served at
//! the moment. For no service in particular: whether this process is of any use, which it is not when the run's own thread
//! answers no question any more. Nothing of the run can be learnt from it.

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_proto::v1::training_server::SERVICE_NAME;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::coordinator::ControlHandle;

/// How often the run's thread is asked.
const PERIOD: Duration = Duration::from_secs(2);
/// How long it may take: longer than any commit on a slow disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// No service in particular, in the health service of gRPC.
const PROCESS: &str = "";

/// The service of health, until this is dropped.
#[derive(Debug)]
pub struct Health {
    address: SocketAddr,
    reporter: HealthReporter,
    runtime: Runtime,
    watch: Option<JoinHandle<()>>,
}

impl Health {
    /// Serves at an address: alive, and with no trainers served yet.
    ///
    /// # Errors
    /// The address is taken or not ours, or the system gives no thread.
    pub fn serve(address: SocketAddr) -> std::io::Result<Health> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("coordinator-health")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        let (reporter, service) = tonic_health::server::health_reporter();
        runtime.block_on(reporter.set_service_status(SERVICE_NAME, ServingStatus::NotServing));
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        runtime.spawn(async move {
            if let Err(error) = server.await {
                tracing::error!("health is not served any more: {error}");
            }
        });
        Ok(Health {
            address,
            reporter,
            runtime,
            watch: None,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on trainers are served, and the run's thread is asked whether it lives.
    pub fn watch(&mut self, handle: ControlHandle) {
        self.runtime
            .block_on(self.reporter.set_service_status(SERVICE_NAME, ServingStatus::Serving));
        let reporter = self.reporter.clone();
        self.watch = Some(self.runtime.spawn(async move {
            loop {
                let status = match handle.answers(PATIENCE).await {
                    true => ServingStatus::Serving,
                    false => ServingStatus::NotServing,
                };
                reporter.set_service_status(PROCESS, status).await;
                tokio::time::sleep(PERIOD).await;
            }
        }));
    }

    /// The run is over: trainers are not served any more, and the process is as it should be.
    pub fn over(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.abort();
            // Whatever it said last is said over below. An error says that it was aborted.
            let _ended = self.runtime.block_on(watch);
        }
        self.runtime.block_on(async {
            self.reporter
                .set_service_status(SERVICE_NAME, ServingStatus::NotServing)
                .await;
            self.reporter.set_service_status(PROCESS, ServingStatus::Serving).await;
        });
    }
}
