//! Getting a part from another member.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::v1;
use lockstep_proto::v1::parts_client::PartsClient;
use tonic::transport::Endpoint;

use crate::Token;
use crate::error::PartsError;
use crate::kept::{Bytes, Name};
use crate::server::CHUNK;

/// How long a connection may take, and a pause between two chunks.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a fetch asks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);
/// The longest part that is believed: no rank owns so much.
const LONGEST: u64 = 1 << 40;

/// The part that a member holds, and its hash, which it has.
pub(crate) async fn fetch(
    address: &str,
    name: Name,
    token: &Token,
    patience: Duration,
) -> Result<([u8; 32], Bytes), PartsError> {
    let refused = |what: &str, why: &dyn std::fmt::Display| PartsError::Refused(format!("{what}: {why}"));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| refused("no address", &error))?
        .connect_timeout(PATIENCE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(PATIENCE)
        .initial_stream_window_size(Some(8 << 20))
        .initial_connection_window_size(Some(8 << 20));
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| refused("it does not answer", &error))?;
    let mut client = PartsClient::new(channel).max_decoding_message_size(2 * CHUNK);
    let request = v1::FetchRequest {
        step: name.step,
        generation: name.generation,
        part: name.part,
        token: token.to_vec(),
        wait_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
    };
    let answered = tokio::time::timeout(patience + PATIENCE, client.fetch(request)).await;
    let answered = answered.map_err(|_| PartsError::Refused("it did not answer in time".to_owned()))?;
    let mut chunks = answered
        .map_err(|status| PartsError::Refused(status.message().to_owned()))?
        .into_inner();
    let mut next = async || {
        let chunk = tokio::time::timeout(PATIENCE, chunks.message()).await;
        chunk
            .map_err(|_| PartsError::Refused("it stopped in the middle".to_owned()))?
            .map_err(|status| refused("it broke off", &status.message()))
    };
    let first = next()
        .await?
        .ok_or_else(|| PartsError::Refused("it sent nothing".to_owned()))?;
    let hash: [u8; 32] = first
        .hash
        .try_into()
        .map_err(|_| PartsError::Refused("it sent no hash".to_owned()))?;
    if first.length > LONGEST {
        return Err(PartsError::Refused(format!("it announced {} bytes", first.length)));
    }
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(first.length as usize)
        .map_err(|error| refused("there is no memory for it", &error))?;
    while let Some(chunk) = next().await? {
        if bytes.len() + chunk.data.len() > first.length as usize {
            return Err(PartsError::Refused("it sent more than it had announced".to_owned()));
        }
        hasher.update(&chunk.data);
        bytes.extend_from_slice(&chunk.data);
    }
    if bytes.len() as u64 != first.length || *hasher.finalize().as_bytes() != hash {
        return Err(PartsError::Refused(format!(
            "what it sent is not what it announced: {} bytes of {}",
            bytes.len(),
            first.length
        )));
    }
    Ok((hash, Arc::new(bytes)))
}

/// Does something, unless it is over before.
pub(crate) async fn unless<T>(
    work: impl Future<Output = Result<T, PartsError>>,
    is_over: &dyn Fn() -> bool,
) -> Result<T, PartsError> {
    tokio::pin!(work);
    loop {
        if is_over() {
            return Err(PartsError::Over);
        }
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
