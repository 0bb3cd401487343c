//! Certificates: of this machine's coordinator, and of one that is called.

use std::fs;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::network::coordinator;
use crate::stage::said;
use crate::ward::{Report, Ward};

const DAY: u64 = 86_400;

/// An authority and a coordinator's certificate for this name, valid between these days from now.
fn make(ward: &Ward, folder: &str, name: &str, from: i64, until: i64) {
    let moment = |days: i64| {
        let span = Duration::from_secs(days.unsigned_abs() * DAY);
        let now = SystemTime::now();
        if days < 0 { now - span } else { now + span }
    };
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, format!("authority of {folder}"));
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let own = authority.self_signed(&authority_key).unwrap();
    let mut server = CertificateParams::new(vec![name.to_owned()]).unwrap();
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.not_before = moment(from).into();
    server.not_after = moment(until).into();
    let key = KeyPair::generate().unwrap();
    let signed = server.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    fs::create_dir_all(ward.path(folder)).unwrap();
    let write = |file: &str, text: String| fs::write(ward.path(folder).join(file), text).unwrap();
    write("ca.pem", own.pem());
    write("server.pem", signed.pem());
    write("server.key", key.serialize_pem());
}

fn sets(folder: &str) -> String {
    format!("--set security.certificate={folder}/server.pem --set security.key={folder}/server.key")
}

#[test]
fn this_machine_s_certificate_is_judged_before_anybody_calls() {
    let ward = Ward::new();
    for (folder, from, until, id, part) in [
        ("old", -30, -1, "certificate-expired", "it was valid until"),
        ("early", 2, 30, "certificate-not-yet-valid", "it is valid from"),
        ("short", -1, 5, "certificate-expires-soon", "less than 14 days"),
    ] {
        make(&ward, folder, "localhost", from, until);
        ward.examine(&format!("run.toml -n 1 {}", sets(folder)))
            .found(id, &[part, "server.pem"]);
    }
    make(&ward, "good", "localhost", -1, 300);
    let report = ward.examine(&format!("run.toml -n 1 {}", sets("good")));
    assert_eq!(report.ids(), [""; 0], "{report:?}");
    let words = "run.toml -n 1 --set security.certificate=good/server.pem --set security.key=old/server.key";
    ward.examine(words)
        .found("certificate-unusable", &["do not make a pair"]);
}

/// What a caller finds who trusts this authority and calls by this name.
fn call(ward: &Ward, url: &str, name: &str, authority: &str) -> Report {
    let url = url.replace("127.0.0.1", name);
    let ca = ward.path(authority).join("ca.pem");
    ward.examine_with(
        &format!("run.toml -n 1 --coordinator {url}"),
        &[("LOCKSTEP_CA", ca.to_str().unwrap())],
    )
}

#[test]
fn a_caller_finds_what_is_wrong_with_the_coordinator_s_certificate() {
    let ward = Ward::new();
    make(&ward, "other", "localhost", -1, 300);
    for (folder, name, from, until, id, part) in [
        (
            "old",
            "localhost",
            -30,
            -1,
            "certificate-expired",
            "certificate expired",
        ),
        (
            "early",
            "localhost",
            2,
            30,
            "certificate-not-yet-valid",
            "certificate not valid yet",
        ),
        (
            "elsewhere",
            "trainer-0.example.org",
            -1,
            300,
            "certificate-name",
            "certificate not valid for name",
        ),
    ] {
        make(&ward, folder, name, from, until);
        let (run, url) = coordinator(&ward, &sets(folder));
        call(&ward, &url, "localhost", folder).found(id, &[part]);
        drop(run);
        let _ = fs::remove_dir_all(ward.path("runs"));
    }
    make(&ward, "good", "localhost", -1, 300);
    let (_run, url) = coordinator(&ward, &sets("good"));
    call(&ward, &url, "localhost", "other").found("certificate-authority", &["UnknownIssuer", "LOCKSTEP_CA"]);
    call(&ward, &url.replace("https://", "http://"), "localhost", "good")
        .found("coordinator-tls", &["talks TLS", "https://"]);
    let report = call(&ward, &url, "localhost", "good");
    assert_eq!(report.ids(), [""; 0], "{report:?}");
}

#[test]
fn https_to_a_coordinator_without_tls_and_without_a_certificate_to_show() {
    let ward = Ward::new();
    let output = ward.stage.lockstep("certs new --out keys");
    assert!(output.status.success(), "{}", said(&output));
    let (run, url) = coordinator(&ward, "");
    call(&ward, &url.replace("http://", "https://"), "localhost", "keys")
        .found("coordinator-tls", &["does not talk TLS"]);
    drop(run);
    let _ = fs::remove_dir_all(ward.path("runs"));
    let (_run, url) = coordinator(&ward, &format!("{} --set security.client_ca=keys/ca.pem", sets("keys")));
    let report = call(&ward, &url, "localhost", "keys");
    assert!(report.ids().contains(&"coordinator-refuses"), "{report:?}");
    assert!(
        report.json.to_string().contains("show a token (LOCKSTEP_TOKEN_FILE)"),
        "{report:?}"
    );
    let path = |name: &str| ward.path(&format!("keys/{name}")).to_str().unwrap().to_owned();
    let (ca, cert, key) = (path("ca.pem"), path("viewer.pem"), path("viewer.key"));
    let known = [
        ("LOCKSTEP_CA", ca.as_str()),
        ("LOCKSTEP_CERT", cert.as_str()),
        ("LOCKSTEP_KEY", key.as_str()),
    ];
    let url = url.replace("127.0.0.1", "localhost");
    let report = ward.examine_with(&format!("run.toml -n 1 --coordinator {url}"), &known);
    assert_eq!(report.ids(), [""; 0], "{report:?}");
}
