//! Certificates: of another authority, expired, not yet valid, signed by nobody, for another use, without a role; and new
//! ones while a run lives.

use std::time::SystemTime;

use lockstep_proto::v1::control_client::ControlClient;
use lockstep_security::Role;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::stage::{Authority, Came, DAY, NOW, Signed, Stage, self_signed, status_over_tls, tls, until};

const OPERATOR: Option<&str> = Some("lockstep:operator/alice");

fn with_certificates(authority: &Authority, tokens: bool) -> Stage {
    let mut stage = Stage::new();
    put(&stage, authority, &authority.server());
    if tokens {
        stage.add_token(Role::Viewer, "a-viewer");
    }
    stage.start(|section, path| {
        section.certificate = Some(path("server.pem"));
        section.key = Some(path("server.key"));
        section.client_ca = Some(path("ca.pem"));
        section.tokens = tokens.then(|| path("tokens"));
    });
    stage
}

fn put(stage: &Stage, authority: &Authority, server: &Signed) {
    stage.write("ca.pem", &authority.pem);
    stage.write("server.pem", &server.pem);
    stage.write("server.key", &server.key);
}

#[tokio::test]
async fn only_a_valid_certificate_of_the_authority_with_a_role_gets_in() {
    for with_tokens in [false, true] {
        let authority = Authority::new();
        let other = Authority::new();
        let stage = with_certificates(&authority, with_tokens);
        let address = stage.address();
        let good = authority.client(OPERATOR, NOW);
        for (what, bad) in [
            ("of another authority", Some(other.client(OPERATOR, NOW))),
            ("expired", Some(authority.client(OPERATOR, (-3, -2)))),
            ("not yet valid", Some(authority.client(OPERATOR, (2, 3)))),
            ("signed by nobody", Some(self_signed("lockstep:operator/alice"))),
            ("for servers", Some(authority.server())),
            ("none", None),
        ] {
            let came = status_over_tls(address, &authority.pem, bad.as_ref()).await;
            // Where tokens are taken too, one without a certificate gets as far as being asked for a token.
            let expected = if with_tokens && bad.is_none() {
                Came::UNAUTHENTICATED
            } else {
                None
            };
            assert!(came.code == expected || came.http == 0, "{what}: {came:?}");
            assert_ne!(came.code, Some(0), "{what}");
        }
        for (what, uri) in [
            ("without a role", None),
            ("of another scheme", Some("spiffe://operator/alice")),
            ("of no such role", Some("lockstep:root/alice")),
            ("without a name", Some("lockstep:operator/")),
        ] {
            let came = status_over_tls(address, &authority.pem, Some(&authority.client(uri, NOW))).await;
            assert_eq!(came.code, Came::UNAUTHENTICATED, "{what}: {came:?}");
        }
        let trainer = authority.client(Some("lockstep:trainer/rank-0"), NOW);
        let came = status_over_tls(address, &authority.pem, Some(&trainer)).await;
        assert_eq!(came.code, Came::DENIED, "{came:?}");
        let came = status_over_tls(address, &other.pem, Some(&good)).await;
        assert_eq!(
            came.http, 0,
            "the coordinator's own certificate is checked by the caller: {came:?}"
        );
        let mut clear = TcpStream::connect(address).await.unwrap();
        clear.write_all(b"GET /api/status HTTP/1.1\r\n\r\n").await.unwrap();
        let came = status_over_tls(address, &authority.pem, Some(&good)).await;
        assert_eq!(came.code, Some(0), "a good one gets in after all of them: {came:?}");
        let (_, contents, _folder) = stage.finish();
        let refused = |part: &str| {
            contents
                .calls
                .iter()
                .any(|row| row.is_refused && row.answer.contains(part))
        };
        for part in [
            "UnknownIssuer",
            "expired",
            "not valid yet",
            "does not name one role",
            "trainer rank-0",
        ] {
            assert!(refused(part), "{part:?} is missing in {:?}", contents.calls);
        }
    }
}

#[tokio::test]
async fn new_certificates_count_while_the_run_lives() {
    let old = Authority::new();
    let stage = with_certificates(&old, false);
    let address = stage.address();
    let of_old = old.client(OPERATOR, NOW);
    assert_eq!(status_over_tls(address, &old.pem, Some(&of_old)).await.code, Some(0));
    // A key that is not the certificate's: the pair before stays in use.
    stage.write("server.key", &Authority::new().server().key);
    until("the broken pair was seen", async || {
        stage
            .calls()
            .iter()
            .any(|row| row.is_refused && row.answer.contains("do not make a pair"))
    })
    .await;
    assert_eq!(status_over_tls(address, &old.pem, Some(&of_old)).await.code, Some(0));
    let new = Authority::new();
    let of_new = new.client(OPERATOR, NOW);
    put(&stage, &new, &new.server());
    until("the new ones count", async || {
        status_over_tls(address, &new.pem, Some(&of_new)).await.code == Some(0)
    })
    .await;
    assert_eq!(status_over_tls(address, &old.pem, Some(&of_old)).await.http, 0);
    assert_ne!(status_over_tls(address, &new.pem, Some(&of_old)).await.code, Some(0));
    std::fs::remove_file(stage.path("server.pem")).unwrap();
    until("that a file is gone was seen", async || {
        stage.calls().iter().any(|row| row.answer.contains("server.pem"))
    })
    .await;
    assert_eq!(status_over_tls(address, &new.pem, Some(&of_new)).await.code, Some(0));
    stage.finish();
}

#[tokio::test]
async fn a_certificate_that_expires_soon_is_told_until_it_is_renewed() {
    let authority = Authority::new();
    let mut stage = Stage::new();
    put(
        &stage,
        &authority,
        &authority.server_until(SystemTime::now() + DAY / 24),
    );
    stage.start(|section, path| {
        section.certificate = Some(path("server.pem"));
        section.key = Some(path("server.key"));
        section.client_ca = Some(path("ca.pem"));
    });
    let operator = authority.client(OPERATOR, NOW);
    let alerts = async || {
        let channel = tls(stage.address(), &authority.pem, Some(&operator)).await.unwrap();
        let header = Some((&lockstep_proto::domain::Header::default()).into());
        let request = lockstep_proto::v1::StatusRequest { header };
        let status = ControlClient::new(channel).status(request).await.unwrap();
        let alerts = status.into_inner().alerts.into_iter();
        let of_it = alerts.filter(|alert| alert.kind == "certificate");
        of_it.map(|alert| alert.sentence).collect::<Vec<String>>()
    };
    until(
        "an hour is said to be left",
        async || matches!(&alerts().await[..], [said] if said.contains("expires in 1.0 hours: renew it")),
    )
    .await;
    put(
        &stage,
        &authority,
        &authority.server_until(SystemTime::now() + 100 * DAY),
    );
    until("the renewed one is known", async || alerts().await.is_empty()).await;
    stage.finish();
}
