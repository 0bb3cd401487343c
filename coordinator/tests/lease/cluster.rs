//! A stand-in for the API of a Kubernetes cluster that knows one Lease: over TLS, with an account as it is mounted into a pod,
//! and with the rule that whoever writes names the version that he has read.
#![allow(dead_code)] // Each test uses its part.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

const TOKEN: &str = "the-pods-own-token";

/// The cluster, and the folder with the account of its pods.
pub(crate) struct Cluster {
    pub(crate) account: PathBuf,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    path: String,
    lease: Option<Value>,
    version: u64,
    /// Connections are closed before a word is said.
    is_silent: bool,
    /// Calls and broken connections, in their order.
    calls: Vec<String>,
}

impl Cluster {
    /// One with a Lease of this name that nobody has had, in the namespace `team`.
    pub(crate) fn start(folder: &Path, lease: &str) -> Cluster {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let account = folder.join("account");
        std::fs::create_dir_all(&account).unwrap();
        let (config, authority) = tls();
        for (file, text) in [("token", TOKEN), ("namespace", "team"), ("ca.crt", &authority)] {
            std::fs::write(account.join(file), text).unwrap();
        }
        let state = Arc::new(Mutex::new(State {
            path: format!("/apis/coordination.k8s.io/v1/namespaces/team/leases/{lease}"),
            lease: Some(json!({ "metadata": { "name": lease, "labels": { "kept": "yes" } } })),
            version: 1,
            is_silent: false,
            calls: Vec::new(),
        }));
        let cluster = Cluster {
            account,
            address: listener.local_addr().unwrap(),
            state: Arc::clone(&state),
        };
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, state) = (Arc::clone(&config), Arc::clone(&state));
                std::thread::spawn(move || serve(stream.unwrap(), config, &state));
            }
        });
        cluster
    }

    /// What Kubernetes tells every pod of the cluster's address.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [
            ("KUBERNETES_SERVICE_HOST", self.address.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", self.address.port().to_string()),
        ]
    }

    /// Puts a process into a pod of this cluster.
    pub(crate) fn let_in(&self, command: &mut Command) {
        command
            .envs(self.variables())
            .env("LOCKSTEP_LEASE_ACCOUNT", &self.account);
    }

    pub(crate) fn spec(&self) -> Value {
        self.state.lock().unwrap().lease.as_ref().unwrap()["spec"].clone()
    }

    pub(crate) fn holder(&self) -> Option<String> {
        self.spec()["holderIdentity"].as_str().map(str::to_owned)
    }

    /// Writes into the Lease, as somebody else.
    pub(crate) fn edit(&self, key: &str, value: Value) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        state.lease.as_mut().unwrap()["spec"][key] = value;
    }

    /// The Lease is gone.
    pub(crate) fn delete(&self) {
        self.state.lock().unwrap().lease = None;
    }

    pub(crate) fn be_silent(&self, is_silent: bool) {
        self.state.lock().unwrap().is_silent = is_silent;
    }

    /// How often somebody came.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }
}

/// The side of the cluster, and its authority.
fn tls() -> (Arc<ServerConfig>, String) {
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let mut server = CertificateParams::default();
    // The cluster is known by its address, as it is in a pod.
    server.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
    let certificate = server.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (Arc::new(config), pem)
}

/// One call.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &Mutex<State>) {
    {
        let mut state = state.lock().unwrap();
        if state.is_silent {
            state.calls.push("nothing".to_owned());
            return;
        }
    }
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let Some((call, token, body)) = read(&mut stream) else {
        return;
    };
    let (code, answer) = answer(&mut state.lock().unwrap(), &call, &token, &body);
    let text = answer.to_string();
    let head = format!(
        "HTTP/1.1 {code} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        text.len()
    );
    // Whoever has asked may have gone.
    let _sent = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(text.as_bytes()))
        .and_then(|()| stream.flush());
    stream.conn.send_close_notify();
    let _sent = stream.flush();
}

/// Method and path, token, body.
fn read(stream: &mut impl Read) -> Option<(String, String, String)> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        let is_it = |line: &&String| line.to_lowercase().starts_with(&format!("{name}:"));
        let line = lines.iter().find(is_it)?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let token = header("authorization").unwrap_or_default().replace("Bearer ", "");
    let call = lines.first()?.rsplit_once(' ')?.0.to_owned();
    Some((call, token, String::from_utf8(body).unwrap()))
}

fn answer(state: &mut State, call: &str, token: &str, body: &str) -> (u16, Value) {
    state.calls.push(call.to_owned());
    let refused = |code: u16, message: &str| (code, json!({ "kind": "Status", "message": message }));
    if token != TOKEN {
        return refused(401, "Unauthorized");
    }
    let (method, path) = call.split_once(' ').unwrap();
    if path != state.path {
        return refused(403, &format!("no right to {path}"));
    }
    let Some(lease) = &mut state.lease else {
        return refused(404, "not found");
    };
    if method == "PUT" {
        let new: Value = serde_json::from_str(body).unwrap();
        if new["metadata"]["resourceVersion"].as_str() != Some(&*state.version.to_string()) {
            return refused(409, "the object has been modified");
        }
        assert_eq!(
            new["metadata"]["labels"],
            json!({ "kept": "yes" }),
            "what others wrote stays"
        );
        *lease = new;
        state.version += 1;
    }
    lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
    (200, lease.clone())
}
