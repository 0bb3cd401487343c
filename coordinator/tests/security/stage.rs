//! A coordinator in a folder of its own, an authority with its certificates, and raw calls.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::BodyExt;
use lockstep_config::{RunConfig, SecuritySection};
use lockstep_coordinator::ledger::{CallRow, Contents, Reader, show};
use lockstep_coordinator::{BegunRun, Coordinator, CoordinatorOptions, Running};
use lockstep_proto::domain::RunEnd;
use lockstep_security::{Identity, Role, Token, entry};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tempfile::{TempDir, tempdir};
use tonic::body::Body;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as Pair};
use tower_service::Service;

/// A test that waits longer than this has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

const CONFIG: &str = r#"
    [run]
    name = "guarded"
    steps = 5
    [data]
    path = "data"
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
"#;

/// A coordinator and where it keeps what it keeps.
pub(crate) struct Stage {
    folder: TempDir,
    pub(crate) running: Option<Running>,
}

impl Stage {
    /// A folder before its coordinator starts.
    pub(crate) fn new() -> Stage {
        Stage {
            folder: tempdir().unwrap(),
            running: None,
        }
    }

    /// With tokens, and one for each role.
    pub(crate) fn with_tokens() -> (Stage, [Token; 3]) {
        let mut stage = Stage::new();
        let tokens = Role::ALL.map(|role| stage.add_token(role, &format!("a-{role}")));
        stage.start(|section, path| section.tokens = Some(path("tokens")));
        (stage, tokens)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        // Whole or not at all, as tools that renew certificates do it.
        let unfinished = self.path("unfinished");
        std::fs::write(&unfinished, text).unwrap();
        std::fs::rename(unfinished, self.path(name)).unwrap();
    }

    /// Adds a token to the file `tokens`.
    pub(crate) fn add_token(&self, role: Role, name: &str) -> Token {
        let token = Token::generate().unwrap();
        let name = name.to_owned();
        let before = std::fs::read_to_string(self.path("tokens")).unwrap_or_default();
        self.write(
            "tokens",
            &format!("{before}{}\n", entry(&Identity { role, name }, &token)),
        );
        token
    }

    pub(crate) fn start(&mut self, secure: impl FnOnce(&mut SecuritySection, &dyn Fn(&str) -> PathBuf)) {
        let mut config = RunConfig::parse(CONFIG, "test", &[]).unwrap();
        secure(&mut config.security, &|name| self.path(name));
        let running = Coordinator::start(CoordinatorOptions {
            config,
            run_dir: self.path("run"),
            begun: BegunRun::LeftAlone,
            vocabulary: 257,
            ranks: 2,
            training_samples: 10,
            data_hash: "data".to_owned(),
        });
        self.running = Some(running.unwrap());
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running().address()
    }

    /// Ends the run; how it ended, and what its ledger holds.
    pub(crate) fn finish(mut self) -> (RunEnd, Contents, TempDir) {
        let running = self.running.take().unwrap();
        running.handle().stop();
        let end = running.wait();
        let contents = show(&Reader::open(&self.path("run")).unwrap()).unwrap();
        (end, contents, self.folder)
    }

    /// The refused and the answered calls that its ledger holds now.
    pub(crate) fn calls(&self) -> Vec<CallRow> {
        show(&Reader::open(&self.path("run")).unwrap()).unwrap().calls
    }

    pub(crate) async fn plain(&self) -> Channel {
        let address = format!("http://{}", self.address());
        Endpoint::from_shared(address).unwrap().connect().await.unwrap()
    }
}

/// What came of a raw call: the HTTP status, and the gRPC code where the call had ended with the headers.
#[derive(Debug, PartialEq)]
pub(crate) struct Came {
    pub(crate) http: u16,
    pub(crate) code: Option<i32>,
    pub(crate) message: String,
}

impl Came {
    pub(crate) const UNAUTHENTICATED: Option<i32> = Some(16);
    pub(crate) const DENIED: Option<i32> = Some(7);
    pub(crate) const TOO_OFTEN: Option<i32> = Some(8);
    pub(crate) const UNKNOWN_CALL: Option<i32> = Some(12);
}

/// Calls a method with these bytes as its first message.
pub(crate) async fn call(channel: &mut Channel, path: &str, authorization: Option<&str>, message: &[u8]) -> Came {
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let mut request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let body = http_body_util::Full::new(body.into());
    let request = request.body(Body::new(body)).unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    match channel.call(request).await {
        Ok(answer) => {
            let http = answer.status().as_u16();
            let mut status = tonic::Status::from_header_map(answer.headers());
            if status.is_none() {
                let collected = tokio::time::timeout(Duration::from_millis(300), answer.into_body().collect()).await;
                let trailers = collected
                    .ok()
                    .and_then(Result::ok)
                    .and_then(|body| body.trailers().cloned());
                status = trailers.and_then(|trailers| tonic::Status::from_header_map(&trailers));
            }
            Came {
                http,
                code: status.as_ref().map(|status| i32::from(status.code())),
                message: status.map(|status| status.message().to_owned()).unwrap_or_default(),
            }
        }
        Err(error) => Came {
            http: 0,
            code: None,
            message: format!("{error:?}"),
        },
    }
}

/// An empty message of an operator: a header with the protocol's version.
pub(crate) fn plain_request() -> Vec<u8> {
    use prost::Message;
    let header = lockstep_proto::domain::Header::default();
    let header = Some((&header).into());
    lockstep_proto::v1::StatusRequest { header }.encode_to_vec()
}

/// Asks for the status with a token.
pub(crate) async fn status(channel: &mut Channel, token: &Token) -> Came {
    let bearer = format!("Bearer {}", token.reveal());
    call(channel, "/lockstep.v1.Control/Status", Some(&bearer), &plain_request()).await
}

/// Waits until something is so.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "waited until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An authority that signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate with its key.
pub(crate) struct Signed {
    pub(crate) pem: String,
    pub(crate) key: String,
}

/// From when to when something is valid, in days from now.
pub(crate) const NOW: (i64, i64) = (-1, 1);

fn params((from, to): (i64, i64)) -> CertificateParams {
    let at = |days: i64| match u32::try_from(days) {
        Ok(days) => SystemTime::now() + DAY * days,
        Err(_) => SystemTime::now() - DAY * u32::try_from(-days).unwrap(),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "of a test");
    (params.not_before, params.not_after) = (at(from).into(), at(to).into());
    params
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut own = params((-10, 10));
        // Authorities are told apart by their names.
        let name = format!("authority {:?}", SystemTime::now());
        own.distinguished_name.push(DnType::CommonName, name);
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = own.self_signed(&key).unwrap().pem();
        Authority {
            issuer: Issuer::new(own, key),
            pem,
        }
    }

    pub(crate) fn server(&self) -> Signed {
        self.server_until(SystemTime::now() + DAY)
    }

    /// A server's certificate that is valid until then.
    pub(crate) fn server_until(&self, end: SystemTime) -> Signed {
        let mut server = params(NOW);
        server.not_after = end.into();
        server.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(server)
    }

    /// A client certificate with this URI in it, if any.
    pub(crate) fn client(&self, uri: Option<&str>, valid: (i64, i64)) -> Signed {
        self.sign(client_params(uri, valid))
    }

    fn sign(&self, params: CertificateParams) -> Signed {
        let key = KeyPair::generate().unwrap();
        Signed {
            pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// One that nobody has signed but its owner.
pub(crate) fn self_signed(uri: &str) -> Signed {
    let key = KeyPair::generate().unwrap();
    Signed {
        pem: client_params(Some(uri), NOW).self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

fn client_params(uri: Option<&str>, valid: (i64, i64)) -> CertificateParams {
    let mut client = params(valid);
    let uris = uri.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap()));
    client.subject_alt_names = uris.collect();
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    client
}

/// Connects over TLS, trusting this authority, and asks for the status.
pub(crate) async fn status_over_tls(address: SocketAddr, authority: &str, own: Option<&Signed>) -> Came {
    match tls(address, authority, own).await {
        Ok(mut channel) => call(&mut channel, "/lockstep.v1.Control/Status", None, &plain_request()).await,
        Err(error) => Came {
            http: 0,
            code: None,
            message: format!("{error:?}"),
        },
    }
}

pub(crate) async fn tls(
    address: SocketAddr,
    authority: &str,
    own: Option<&Signed>,
) -> Result<Channel, tonic::transport::Error> {
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    if let Some(own) = own {
        config = config.identity(Pair::from_pem(&own.pem, &own.key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(config)?;
    endpoint.connect().await
}

/// Every byte of every file in a folder.
pub(crate) fn all_bytes(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => bytes.extend(all_bytes(&path)),
            false => bytes.extend(std::fs::read(path).unwrap()),
        }
    }
    bytes
}
