//! What the operator decides about names, and what holds when others are faster or the controller is not there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::kube::{
    ApiServer, Client, Control, DIVERT, NAMESPACE, Options, Refusal, SERVICE, condition, install_definition,
    service,
};
use divert_tests::manifest;
use serde_json::{Value, json};

/// `--names-left-free`: long enough to see that nothing comes before.
const LEFT_FREE: Duration = Duration::from_secs(3);
/// Names that two want at a time.
const WANTED_BY_TWO: usize = 12;

/// A server whose garbage collector knows of Diverts: it looks for new kinds every 30 s only, and at its start.
fn server() -> Result<(Arc<ApiServer>, Client)> {
    let mut server = ApiServer::start(Options::default())?;
    install_definition(server.admin())?;
    server.start_controllers()?;
    let account = Control::install(&server)?;
    Ok((Arc::new(server), account))
}

#[test]
fn limits_of_the_operator_and_a_controller_that_is_gone() -> Result<()> {
    let (server, account) = server()?;
    let admin = server.admin();
    let left_free = LEFT_FREE.as_secs().to_string();
    let arguments =
        ["--max-names", "2", "--shared-namespaces", "staging", "--names-left-free", left_free.as_str()];
    let control = Control::start(&server, &account, &arguments)?;
    admin.create_pair("staging", "alice", &["b", "c", "d"])?;
    admin.create_pair("unlisted", "bob", &[])?;

    // Labelled is not enough where the operator has a list.
    let refused = admin.create(&manifest::divert("bob", "unlisted"))?;
    let says = "not among the sharedNamespaces";
    let refused = admin.wait_condition(&refused, "Accepted", "SharedNamespaceNotShared", says)?;
    admin.wait_event(&refused, "Warning", "SharedNamespaceNotShared", says)?;

    // At most two names: the first, also when another comes before them, or goes.
    let divert = admin.create(&manifest::divert("alice", "staging"))?;
    let says = "alice lacks more names than the 2 that are made";
    let seen = admin.wait_condition(&divert, "Names", "TooMany", says)?;
    assert_eq!(condition(&seen, "Names")["status"], "False");
    assert_eq!(condition(&seen, "Accepted")["status"], "True", "it gates nothing");
    admin.wait_event(&seen, "Warning", "TooMany", says)?;
    let [b, _] = [admin.wait_ours("alice", "b")?, admin.wait_ours("alice", "c")?];
    assert_eq!(Refusal::of(admin.get(SERVICE, "alice", "d"))?.code, 404);
    admin.create(&service("staging", "a"))?;
    admin.wait_ours("alice", "a")?;
    admin.wait_gone(SERVICE, "alice", "c")?;
    admin.delete(SERVICE, "staging", "a")?;
    admin.wait_gone(SERVICE, "alice", "a")?;
    admin.wait_ours("alice", "c")?;
    // With one of her own there is room for all; it was never one of ours that went for it.
    admin.create(&service("alice", "d"))?;
    let seen = admin.wait_condition(&divert, "Names", "Resolve", "every Service of staging resolves")?;
    admin.wait_event(&seen, "Normal", "Resolve", "every Service of staging resolves")?;

    // What somebody takes away is left free for a time, be it ours or theirs, and made then.
    for name in ["c", "d"] {
        let taken = Instant::now();
        admin.delete(SERVICE, "alice", name)?;
        admin.wait_ours("alice", name)?;
        ensure!(taken.elapsed() >= LEFT_FREE, "{name} is back after {:?}", taken.elapsed());
        if name == "c" {
            // Room for the last: there is none for d while c is here.
            admin.delete(SERVICE, "staging", "c")?;
            admin.wait_gone(SERVICE, "alice", "c")?;
        }
    }

    // Consent that is withdrawn takes the names along, and given again brings them back.
    let label = |value: Value| {
        let labels = json!({"metadata": {"labels": {"divert.dev/shared": value}}});
        admin.patch(NAMESPACE, "", "staging", &labels)
    };
    label(Value::Null)?;
    admin.wait_gone(SERVICE, "alice", "b")?;
    label(json!("true"))?;
    let again = admin.wait_ours("alice", "b")?;
    assert_ne!(again["metadata"]["uid"], b["metadata"]["uid"]);
    let d = admin.wait_ours("alice", "d")?;

    // Another controller finds all as it ought to be, and writes nothing.
    admin.wait_condition(&divert, "Names", "Resolve", "")?;
    let before = [admin.get(DIVERT, "alice", "staging")?, again, d];
    control.kill();
    let control = Control::start(&server, &account, &arguments)?;
    let bob = admin.patch(DIVERT, "bob", "unlisted", &json!({"spec": {"sharedNamespace": "staging"}}))?;
    admin
        .wait_condition(&bob, "Names", "Resolve", "every Service of staging resolves in bob")
        .with_context(|| control.output())?;
    admin.wait_ours("bob", "d")?;
    let after = [
        admin.get(DIVERT, "alice", "staging")?,
        admin.get(SERVICE, "alice", "b")?,
        admin.get(SERVICE, "alice", "d")?,
    ];
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before["metadata"], after["metadata"], "it was written for nothing");
    }

    // Without any controller what is ours goes with its Divert, and no namespace waits for one.
    control.kill();
    admin.delete(DIVERT, "alice", "staging")?;
    for name in ["b", "d"] {
        admin.wait_gone(SERVICE, "alice", name)?;
    }
    admin.delete(NAMESPACE, "", "bob")?;
    admin.delete(NAMESPACE, "", "staging")?;
    admin.wait_gone(NAMESPACE, "", "bob")?;
    admin.wait_gone(NAMESPACE, "", "staging")
}

/// How many POSTs of Services the API server has refused, as the names were there.
fn refused(admin: &Client) -> Result<usize> {
    let text = admin.request("GET", "/metrics", "text/plain", None)?;
    let text = text.as_str().context("metrics are text")?;
    let count = |line: &str| line.rsplit(' ').next().and_then(|it| it.parse::<usize>().ok());
    let lines = text.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && ["verb=\"POST\"", "resource=\"services\"", "code=\"409\""].iter().all(|it| line.contains(it))
    });
    Ok(lines.filter_map(count).sum())
}

#[test]
fn who_creates_a_service_first_has_it() -> Result<()> {
    let (server, account) = server()?;
    let admin = server.admin();
    let control = Control::start(&server, &account, &[])?;
    admin.create_pair("staging", "alice", &["first"])?;
    admin.create(&manifest::divert("alice", "staging"))?;
    admin.wait_ours("alice", "first").with_context(|| control.output())?;

    // Both at the same time, as near as can be: she makes her own just when the controller would.
    let (mut hers, mut ours) = (0, 0);
    for round in 0..60 {
        let names: Vec<_> = (0..WANTED_BY_TWO).map(|number| format!("n{round}-{number}")).collect();
        let lead = Duration::from_millis(90 + round % 20 * 3);
        let created = std::thread::scope(|scope| {
            let shared = scope.spawn(|| {
                names.iter().try_for_each(|name| admin.create(&service("staging", name)).map(drop))
            });
            std::thread::sleep(lead);
            let create = |name: &String| match admin.create(&service("alice", name)) {
                Ok(created) => Ok(Some(created)),
                Err(error) => match error.downcast::<Refusal>() {
                    Ok(refusal) if refusal.reason == "AlreadyExists" => Ok(None),
                    Ok(refusal) => Err(refusal.into()),
                    Err(error) => Err(error),
                },
            };
            let created = names.iter().map(create).collect::<Result<Vec<_>>>()?;
            shared.join().expect("it gives errors back").map(|()| created)
        })?;
        for (name, created) in names.iter().zip(&created) {
            match created {
                Some(_) => hers += 1,
                None => {
                    ours += 1;
                    admin.wait_ours("alice", name)?;
                }
            }
        }
        // What the controller has not done to them by the next, it does not mean to.
        let next = format!("z{round}");
        admin.create(&service("staging", &next))?;
        admin.wait_ours("alice", &next)?;
        for (name, created) in names.iter().zip(created) {
            let Some(created) = created else { continue };
            let now = admin.get(SERVICE, "alice", name)?;
            assert_eq!(now["metadata"], created["metadata"], "{name} is hers");
        }
        // Ours that were refused; hers are counted by what she was told.
        let lost = refused(admin)? - ours;
        if lost > 0 {
            eprintln!(
                "after {} rounds: {hers} hers, {ours} ours, of hers {lost} just before ours",
                round + 1
            );
            return Ok(());
        }
    }
    anyhow::bail!("in 60 rounds nobody was just before the controller: {hers} hers, {ours} ours")
}
