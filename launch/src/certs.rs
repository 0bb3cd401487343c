//! `lockstep certs new | token`: what a coordinator needs that others reach.
//!
//! `new` makes everything in memory (an authority, then a certificate for the coordinator and one for each role) and
//! writes it only where no file is there yet. Client certificates name their role as a URI, `lockstep:ROLE/NAME`.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use lockstep_security::{Identity, Role, Token, entry, is_name};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::cli::{CertsArguments, CertsCommand, TokenArguments};
use crate::ending::Ending;

/// Clocks may differ by so much.
const SKEW: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(86_400);

/// Carries out a command about certificates.
pub(crate) fn certs(command: &CertsCommand) -> Result<(), Ending> {
    match command {
        CertsCommand::New(arguments) => new(arguments),
        CertsCommand::Token(arguments) => token(arguments),
    }
}

/// A file to be written: its name, its content, and whether only its owner may read it.
type Made = (String, String, bool);

fn new(arguments: &CertsArguments) -> Result<(), Ending> {
    let out = &arguments.out;
    let files = made(arguments)?;
    for (name, ..) in &files {
        if out.join(name).exists() {
            return Err(Ending::BadInput(format!(
                "{} is there already, and nothing is written over: name another folder with --out",
                out.join(name).display()
            )));
        }
    }
    let failed =
        |path: &Path, error: std::io::Error| Ending::Failed(format!("cannot write {}: {error}", path.display()));
    let folder = DirBuilder::new().recursive(true).mode(0o700).create(out);
    folder.map_err(|error| failed(out, error))?;
    for (name, content, is_secret) in &files {
        let path = out.join(name);
        let mode = if *is_secret { 0o600 } else { 0o644 };
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        let written = file.and_then(|mut file| file.write_all(content.as_bytes()));
        written.map_err(|error| failed(&path, error))?;
    }
    let path = |name: &str| out.join(name).display().to_string();
    println!("made in {}, valid for {} days:", out.display(), arguments.days);
    println!("  ca.pem, ca.key             the authority; keep ca.key where no other machine reaches it");
    println!("  server.pem, server.key     for the coordinator");
    for role in Role::ALL {
        println!("  {:<26} for every {role}", format!("{role}.pem, {role}.key"));
    }
    println!(
        "\n[security]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    Ok(())
}

fn made(arguments: &CertsArguments) -> Result<Vec<Made>, Ending> {
    let mut files = Vec::new();
    let authority_key = key()?;
    // Of several sets, each has an authority of another name: whoever mixes them up reads that the issuer is unknown.
    let key_bytes = authority_key.public_key_raw();
    let own: String = key_bytes
        .iter()
        .rev()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut authority = valid(&format!("lockstep authority {own}"), arguments.days);
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let own = authority.self_signed(&authority_key).map_err(Ending::failed)?;
    files.push(("ca.pem".to_owned(), own.pem(), false));
    files.push(("ca.key".to_owned(), authority_key.serialize_pem(), true));
    let issuer = Issuer::new(authority, authority_key);

    let mut server = valid("lockstep coordinator", arguments.days);
    server.subject_alt_names = hosts(&arguments.hosts)?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    signed("server", server, &issuer, &mut files)?;
    // The whole chain: trainers that `lockstep run` starts trust it where no other authority is named.
    if let Some((_, pem, _)) = files.iter_mut().find(|(name, ..)| name == "server.pem") {
        pem.push_str(&own.pem());
    }
    for role in Role::ALL {
        let mut client = valid(&format!("lockstep {role}"), arguments.days);
        let uri = format!("lockstep:{role}/{role}").try_into().map_err(Ending::failed)?;
        client.subject_alt_names = vec![SanType::URI(uri)];
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        signed(role.word(), client, &issuer, &mut files)?;
    }
    Ok(files)
}

fn signed(
    name: &str,
    mut params: CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
    files: &mut Vec<Made>,
) -> Result<(), Ending> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = key()?;
    let certificate = params.signed_by(&key, issuer).map_err(Ending::failed)?;
    files.push((format!("{name}.pem"), certificate.pem(), false));
    files.push((format!("{name}.key"), key.serialize_pem(), true));
    Ok(())
}

fn key() -> Result<KeyPair, Ending> {
    KeyPair::generate().map_err(|error| Ending::Failed(format!("no key can be made: {error}")))
}

fn valid(name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + DAY * days).into();
    params
}

/// Every name under which the coordinator is reached.
fn hosts(given: &[String]) -> Result<Vec<SanType>, Ending> {
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    names.extend(given.iter().cloned());
    // A name that nobody can give as an address is of no use in a certificate either.
    names.extend(Some(own).filter(|own| is_host(own)));
    let mut hosts: Vec<SanType> = Vec::new();
    for name in names {
        let refused = || {
            Ending::BadInput(format!(
                "--host {name}: it is neither an address nor the name of a host, such as node-1.example.org"
            ))
        };
        let host = match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if is_host(&name) => SanType::DnsName(name.clone().try_into().map_err(|_| refused())?),
            Err(_) => return Err(refused()),
        };
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    Ok(hosts)
}

/// Whether this can be the name of a host: labels of letters, digits and `-`; the first may be `*`.
fn is_host(name: &str) -> bool {
    let is_label = |label: &str| {
        let allowed = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        allowed && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let labels = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253 && labels.split('.').all(is_label)
}

fn token(arguments: &TokenArguments) -> Result<(), Ending> {
    let file = &arguments.tokens;
    if !is_name(&arguments.name) {
        return Err(Ending::BadInput(format!(
            "--name {}: write 1 to 64 letters, digits, `.`, `_`, `-` or `@`",
            arguments.name
        )));
    }
    let token = Token::generate().map_err(Ending::failed)?;
    let identity = Identity {
        role: arguments.role,
        name: arguments.name.clone(),
    };
    let failed = |error: std::io::Error| Ending::Failed(format!("cannot write {}: {error}", file.display()));
    let mut options = OpenOptions::new();
    let mut open = options
        .append(true)
        .create(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    // One write, so that a coordinator that looks meanwhile sees the whole line or nothing of it.
    open.write_all(format!("{}\n", entry(&identity, &token)).as_bytes())
        .map_err(failed)?;
    println!("{}", token.reveal());
    eprintln!(
        "the token of {identity}: it is shown this once, and {} has only its hash. Whoever has it is {identity}",
        file.display()
    );
    Ok(())
}
