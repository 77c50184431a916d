//! Users, passwords and certificates.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tenon_store::{Error, Event, Options, Store, WatchStatus, Write};

use crate::cluster::{Cluster, soon, within};

fn enable_users(cluster: &mut Cluster) {
    for arguments in [
        &["user", "add", "root:secret"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "tenon:right"],
        &["role", "add", "tenon"],
        &["role", "grant-permission", "tenon", "--prefix=true", "readwrite", "/t/"],
        &["user", "grant-role", "tenon", "tenon"],
        &["auth", "enable"],
    ] {
        cluster.etcdctl(arguments);
    }
    cluster.etcdctl_flags.push("--user=root:secret".to_owned());
}

fn as_user(cluster: &Cluster, password: &str) -> Options {
    let password_file = cluster.dir.path().join("password");
    std::fs::write(&password_file, format!("{password}\n")).unwrap();
    Options { username: Some("tenon".into()), password_file: Some(password_file), ..cluster.options() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_may_do_what_its_role_allows_and_is_told_what_not() {
    let mut cluster = Cluster::start(1);
    enable_users(&mut cluster);
    let store = Store::connect(as_user(&cluster, "right")).unwrap();
    assert!(store.txn(&[], &[Write::put("/t/a", "1")]).await.unwrap().applied());
    let outside = store.txn(&[], &[Write::put("/other", "1")]).await.unwrap_err();
    assert!(matches!(outside, Error::Denied { .. }));
    assert!(outside.to_string().contains("permission denied"), "{outside}");

    let watch = store.watch("/other/");
    let mut status = watch.status();
    let lost = status.wait_for(|status| matches!(status, WatchStatus::Lost { .. }));
    let lost = format!("{:?}", *within(Duration::from_secs(10), "a refused watch", lost).await.unwrap());
    assert!(lost.contains("permission denied"), "{lost}");

    let wrong = Store::connect(as_user(&cluster, "wrong")).unwrap();
    let error = wrong.get("/t/a").await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }));
    assert!(error.to_string().contains("password_file"), "{error}");
    // The password is read again when a login failed.
    as_user(&cluster, "right");
    assert_eq!(wrong.get("/t/a").await.unwrap().unwrap().value, b"1");

    let nobody = cluster.store().get("/t/a").await.unwrap_err();
    assert!(matches!(nobody, Error::Denied { .. }));
    assert!(nobody.to_string().contains("set username"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_watch_outlive_their_tokens() {
    let mut cluster = Cluster::start(1);
    // Before there are users there is nobody to log in as, which must not keep the store away.
    let store = Store::connect(as_user(&cluster, "right")).unwrap();
    assert!(store.txn(&[], &[Write::put("/t/a", "0")]).await.unwrap().applied());
    let mut watch = store.watch("/t/");
    soon("the snapshot", watch.next()).await;
    enable_users(&mut cluster);
    assert!(store.txn(&[], &[Write::put("/t/a", "1")]).await.unwrap().applied());
    let event = soon("the change", watch.next()).await;
    assert!(matches!(event, Event::Changes { .. }), "{event:?}");
    // A member forgets its tokens when it is restarted.
    for value in ["2", "3"] {
        cluster.members[0].kill();
        cluster.members[0].run();
        cluster.members[0].wait();
        within(Duration::from_secs(10), "a write", async {
            while store.txn(&[], &[Write::put("/t/a", value)]).await.is_err() {}
        })
        .await;
        let event = within(Duration::from_secs(10), "the change", watch.next()).await;
        let Event::Changes { changes, .. } = &event else { panic!("{event:?}") };
        assert!(format!("{changes:?}").contains("/t/a"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_both_ways() {
    let cluster = Cluster::start_with(1, "https", |dir| {
        authority(dir.path(), "ca");
        authority(dir.path(), "stranger");
        certificate(dir.path(), "ca", "server");
        certificate(dir.path(), "ca", "client");
        certificate(dir.path(), "stranger", "forged");
        let file = |name: &str| dir.path().join(name).display().to_string();
        vec![
            format!("--cert-file={}", file("server.crt")),
            format!("--key-file={}", file("server.key")),
            format!("--trusted-ca-file={}", file("ca.crt")),
            "--client-cert-auth".to_owned(),
        ]
    });
    let file = |name: &str| Some(cluster.dir.path().join(name));
    let options = |ca: &str, own: Option<&str>| Options {
        ca_file: file(ca),
        cert_file: own.and_then(|own| file(&format!("{own}.crt"))),
        key_file: own.and_then(|own| file(&format!("{own}.key"))),
        timeout: Duration::from_secs(2),
        ..cluster.options()
    };
    let store = Store::connect(options("ca.crt", Some("client"))).unwrap();
    assert!(store.txn(&[], &[Write::put("/t/a", "1")]).await.unwrap().applied());
    let mut watch = store.watch("/t/");
    assert!(
        matches!(soon("the snapshot", watch.next()).await, Event::Snapshot { kvs, .. } if kvs.len() == 1)
    );

    for (ca, own, word) in [
        ("stranger.crt", Some("client"), "UnknownIssuer"),
        ("ca.crt", None, "accept cert_file"),
        ("ca.crt", Some("forged"), "accept cert_file"),
    ] {
        let error = Store::connect(options(ca, own)).unwrap().get("/t/a").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(word), "{ca} {own:?}: {error}");
    }
}

fn authority(dir: &Path, name: &str) {
    openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"
        ),
    );
}

fn certificate(dir: &Path, authority: &str, name: &str) {
    let extensions =
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n";
    std::fs::write(dir.join("extensions"), extensions).unwrap();
    openssl(
        dir,
        &format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ),
    );
    openssl(
        dir,
        &format!(
            "x509 -req -days 2 -in {name}.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial -extfile extensions -out {name}.crt"
        ),
    );
}

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
