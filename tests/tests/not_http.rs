//! correctness.md, Not HTTP: real programs that speak other protocols, on a captured port.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use divert_tests::fixture::{Fixture, PORT};
use divert_tests::lab::{FAMILIES, Pod};
use divert_tests::process::Process;
use divert_tests::script::{Script, Step, compare, is_captured};
use divert_tests::server::accept;
use divert_tests::wait;

/// Programs that make keys or databases take their time on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a client program in a pod to its end, and returns what it printed.
fn ask(pod: &Pod, program: &str, arguments: &[&str]) -> Result<String> {
    pod.spawn(program, command(program, arguments))?.finish(LONG)
}

/// Waits until the pod's own port answers; asked in the pod itself, where nothing is captured.
fn wait_listening(pod: &Pod, server: &mut Process) -> Result<()> {
    let to = (pod.ip(FAMILIES[0]), PORT).into();
    wait::until_within(LONG, "the server to listen", || {
        server.exited().is_some() || pod.connect(to).is_ok()
    })?;
    ensure!(server.exited().is_none(), "the server ended:\n{}", server.output());
    Ok(())
}

/// The programs' connections cannot be looked into; one of our own beside them is captured.
fn assert_captured(town: &Fixture) -> Result<()> {
    let http = town.connect()?;
    ensure!(is_captured(http.stream(), &town.client())? == Some(true), "the port is not captured");
    Ok(())
}

/// The programs that may not run as root get a folder of their own.
fn folder_for(town: &Fixture, user: &str, name: &str) -> Result<String> {
    let folder = town.lab.folder().join(name);
    fs::create_dir(&folder)?;
    let owned = Command::new("chown").arg(user).arg(&folder).status()?;
    ensure!(owned.success(), "chown {user} {}", folder.display());
    Ok(folder.to_str().context("the folder's name is text")?.to_owned())
}

#[test]
fn redis() -> Result<()> {
    let town = Fixture::new()?;
    let port = PORT.to_string();
    let arguments = ["--port", &port, "--save", "", "--protected-mode", "no", "--bind", "0.0.0.0", "::"];
    let mut server = town.server().spawn("redis-server", command("redis-server", &arguments))?;
    wait_listening(&town.server(), &mut server)?;
    let _agent = town.agent()?;
    assert_captured(&town)?;
    for family in FAMILIES {
        let host = town.address(family).ip().to_string();
        let cli = |arguments: &[&str]| {
            ask(&town.client(), "redis-cli", &[&["-h", &host, "-p", &port], arguments].concat())
        };
        assert_eq!(cli(&["SET", "key", "GET / HTTP/1.1"])?.trim(), "OK");
        assert_eq!(cli(&["GET", "key"])?.trim(), "GET / HTTP/1.1");
        assert_eq!(cli(&["EVAL", "return string.rep('x', 1000000)", "0"])?.trim().len(), 1_000_000);
        assert!(cli(&["-r", "500", "INCR", "counter"])?.trim().ends_with("500"));
        cli(&["DEL", "counter"])?;
    }
    Ok(())
}

#[test]
fn postgresql() -> Result<()> {
    let town = Fixture::new()?;
    let folder = folder_for(&town, "postgres", "postgresql")?;
    let bin = newest_postgresql()?;
    let port = PORT.to_string();
    let as_postgres = |program: &str, arguments: &[&str]| {
        let program = format!("{bin}/{program}");
        command(
            "setpriv",
            &[&["--reuid=postgres", "--regid=postgres", "--init-groups", &program], arguments].concat(),
        )
    };
    let data = format!("{folder}/data");
    let made = as_postgres("initdb", &["-D", &data, "-A", "trust", "-N", "--locale=C"]);
    town.server().spawn("initdb", made)?.finish(LONG)?;
    fs::OpenOptions::new()
        .append(true)
        .open(format!("{data}/pg_hba.conf"))?
        .write_all(b"host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")?;
    let arguments = ["-D", &data, "-p", &port, "-k", &folder, "-c", "listen_addresses=*", "-c", "fsync=off"];
    let mut server = town.server().spawn("postgres", as_postgres("postgres", &arguments))?;
    wait_listening(&town.server(), &mut server)?;
    server.wait_for_output("ready to accept connections")?;
    let _agent = town.agent()?;
    assert_captured(&town)?;
    for family in FAMILIES {
        let host = town.address(family).ip().to_string();
        let query = |sql: &str| {
            let arguments = ["-h", &host, "-p", &port, "-U", "postgres", "-X", "-A", "-t", "-c", sql];
            ask(&town.client(), "psql", &arguments)
        };
        assert_eq!(query("SELECT 6 * 7")?.trim(), "42");
        assert_eq!(query("SELECT repeat('x', 1000) FROM generate_series(1, 2000)")?.len(), 2000 * 1001);
        let client = town.client().ip(family).to_string();
        assert_eq!(query("SELECT host(inet_client_addr())")?.trim(), client);
    }
    Ok(())
}

/// Debian keeps the programs of each version apart.
fn newest_postgresql() -> Result<String> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("looking for postgresql: is it installed?")?;
    let mut paths: Vec<_> = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    paths.sort();
    let newest = paths.pop().context("/usr/lib/postgresql is empty")?;
    Ok(newest.to_str().context("the path is text")?.to_owned())
}

#[test]
fn mariadb() -> Result<()> {
    let town = Fixture::new()?;
    let folder = folder_for(&town, "mysql", "mariadb")?;
    let (data, port) = (format!("--datadir={folder}"), format!("--port={PORT}"));
    let made = [
        "--no-defaults",
        "--user=mysql",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        &data,
    ];
    town.server().spawn("mariadb-install-db", command("mariadb-install-db", &made))?.finish(LONG)?;
    let (socket, pid) = (format!("--socket={folder}/socket"), format!("--pid-file={folder}/pid"));
    // All may connect without a password: this namespace has no way in.
    let arguments = [
        "--no-defaults",
        "--user=mysql",
        "--bind-address=*",
        "--skip-grant-tables",
        "--skip-networking=0",
        &data,
        &port,
        &socket,
        &pid,
    ];
    let mut server = town.server().spawn("mariadbd", command("mariadbd", &arguments))?;
    wait_listening(&town.server(), &mut server)?;
    let _agent = town.agent()?;
    assert_captured(&town)?;
    for family in FAMILIES {
        let host = format!("--host={}", town.address(family).ip());
        let query = |sql: &str| {
            let arguments =
                ["--no-defaults", &host, &port, "--protocol=tcp", "--skip-ssl", "--batch", "-N", "-e", sql];
            ask(&town.client(), "mariadb", &arguments)
        };
        assert_eq!(query("SELECT 6 * 7")?.trim(), "42");
        assert_eq!(query("SELECT repeat('x', 1000000)")?.trim().len(), 1_000_000);
    }
    Ok(())
}

#[test]
fn tls() -> Result<()> {
    let town = Fixture::new()?;
    let folder = town.lab.folder().join("tls");
    fs::create_dir(&folder)?;
    let body: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    fs::write(folder.join("file"), &body)?;
    let mut server = tls_server(&town, &folder)?;
    wait_listening(&town.server(), &mut server)?;
    let _agent = town.agent()?;
    assert_captured(&town)?;
    for family in FAMILIES {
        let url = format!("https://{}/file", town.address(family));
        // Encrypted, so that the header cannot be read: the shared copy answers.
        let baggage = "baggage: okteto-divert=alice";
        let arguments = ["-sS", "--insecure", "--noproxy", "*", "-H", baggage, &url];
        assert!(
            ask(&town.client(), "curl", &arguments)? == body,
            "the file came through changed by {family:?}"
        );
    }
    Ok(())
}

fn tls_server(town: &Fixture, folder: &Path) -> Result<Process> {
    let key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let files = ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=web", "-days", "2"];
    let mut make = command("openssl", &[&key[..], &files].concat());
    make.current_dir(folder);
    town.server().spawn("openssl req", make)?.finish(LONG)?;
    let accept = format!("*:{PORT}");
    let mut serve =
        command("openssl", &["s_server", "-WWW", "-accept", &accept, "-cert", "cert.pem", "-key", "key.pem"]);
    serve.current_dir(folder);
    town.server().spawn("openssl s_server", serve)
}

/// The opening of a Kafka connection, which Debian has no broker for: a client's ApiVersions request
/// (api key 18, version 0, correlation 1, client id "c") and a broker's answer, each behind its length.
#[test]
fn kafka() -> Result<()> {
    const REQUEST: &[u8] = b"\x00\x00\x00\x0b\x00\x12\x00\x00\x00\x00\x00\x01\x00\x01c";
    const RESPONSE: &[u8] =
        b"\x00\x00\x00\x10\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x12\x00\x00\x00\x03";
    compare(&[(
        "ApiVersions, twice, the second cut in the middle of its length",
        Script::new(
            vec![
                Step::send(REQUEST),
                Step::expect(RESPONSE),
                Step::send(&REQUEST[..2]),
                Step::Signal("first half"),
                Step::Await("halved"),
                Step::send(&REQUEST[2..]),
                Step::expect(RESPONSE),
                Step::Close,
            ],
            vec![
                Step::expect(REQUEST),
                Step::send(RESPONSE),
                Step::Await("first half"),
                Step::expect(&REQUEST[..2]),
                Step::Signal("halved"),
                Step::expect(&REQUEST[2..]),
                Step::send(RESPONSE),
                Step::ReadEnd,
            ],
        ),
    )])
}

#[test]
fn nobody_waits_for_a_protocol_to_be_detected() -> Result<()> {
    /// Proxies in the field wait for seconds before they let a server speak first.
    const AT_ONCE: Duration = Duration::from_millis(300);
    let town = Fixture::new()?;
    let listener = town.server().listen(PORT)?;
    let _agent = town.agent()?;
    let mut best = LONG;
    // The best of some: a busy machine may delay any one of them.
    for _ in 0..5 {
        let began = Instant::now();
        let mut client = town.client().connect(town.address(FAMILIES[0]))?;
        let (mut server, _) = accept(&listener)?;
        server.write_all(b"220 ready\r\n")?;
        let mut banner = [0; 11];
        client.read_exact(&mut banner)?;
        assert_eq!(&banner, b"220 ready\r\n");
        best = best.min(began.elapsed());
    }
    assert!(best < AT_ONCE, "a banner took {best:?}");
    Ok(())
}
