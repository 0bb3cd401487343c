//! `lockstep health`: whether a coordinator serves trainers, by the health service of gRPC, which anybody may ask.

use std::time::{Duration, Instant};

use lockstep_security::Credentials;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::HealthArguments;
use crate::control::{PATIENCE, block_on, innermost};
use crate::ending::Ending;

/// The service whose health is asked for: the trainers'.
const SERVICE: &str = "lockstep.v1.Training";
/// Between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// Carries out `lockstep health`.
pub(crate) fn health(arguments: &HealthArguments) -> Result<(), Ending> {
    let credentials = Credentials::of(arguments.credentials.clone()).map_err(Ending::bad_input)?;
    let until = Instant::now() + Duration::from_secs(arguments.wait);
    block_on(async {
        loop {
            match ask(&credentials, &arguments.coordinator).await {
                Err(Ending::Failed(_)) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
                answer => return answer,
            }
        }
    })
}

async fn ask(credentials: &Credentials, address: &str) -> Result<(), Ending> {
    let (endpoint, bearer) = credentials.way_to(address).map_err(Ending::bad_input)?;
    let connected = endpoint.connect_timeout(PATIENCE).connect().await;
    let channel = connected
        .map_err(|error| Ending::Failed(format!("no coordinator answers at {address} ({})", innermost(&error))))?;
    let mut client = HealthClient::new(bearer.on(channel));
    let question = client.check(HealthCheckRequest {
        service: SERVICE.to_owned(),
    });
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => {
            println!("{address} serves {SERVICE}");
            Ok(())
        }
        Ok(Ok(_)) => Err(Ending::Failed(format!(
            "{address} answers, and does not serve {SERVICE} now"
        ))),
        Ok(Err(status)) if status.code() == Code::NotFound => Err(Ending::Failed(format!(
            "{address} answers, and is no coordinator: it has no {SERVICE}"
        ))),
        Ok(Err(status)) => Err(Ending::Failed(format!("{address}: {}", status.message()))),
        Err(_) => Err(Ending::Failed(format!(
            "{address} gave no answer in {} s",
            PATIENCE.as_secs()
        ))),
    }
}
