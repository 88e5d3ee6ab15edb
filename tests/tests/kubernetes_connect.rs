//! How commands find and reach the API server: contexts, proxies, plugins and certificates as kubectl has them. Where kubectl
//! decides by itself, it is asked: it runs beside the program, in the same place, with the same environment.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use divert_common::netns::NetNs;
use divert_tests::agent;
use divert_tests::kube::{self, ApiServer, CLUSTER_ROLE_BINDING, ForwardProxy, Manner, Options};
use divert_tests::named_netns::NamedNetNs;
use divert_tests::run::{RunName, TempDir};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use serde_json::{Value, json};

/// Names of the environment by which proxies are chosen; the test's own has none of them.
const PROXY_VARIABLES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// A folder with kubeconfigs and an okteto.yaml.
struct Desk {
    folder: TempDir,
    server: Arc<ApiServer>,
}

impl Desk {
    fn new(server: Arc<ApiServer>) -> Result<Self> {
        let folder = TempDir::new(&RunName::next()?.to_string())?;
        fs::write(folder.path().join("okteto.yaml"), "deploy: {divert: {namespace: staging}}\n")?;
        Ok(Self { folder, server })
    }

    /// The administrator's kubeconfig, changed: `cluster` goes into its cluster, `user` in the place of its user.
    fn kubeconfig(&self, name: &str, cluster: &Value, user: Option<Value>) -> Result<PathBuf> {
        let admin = fs::read(self.server.admin().kubeconfig())?;
        let mut config: Value = serde_json::from_slice(&admin)?;
        for (field, value) in cluster.as_object().into_iter().flatten() {
            config["clusters"][0]["cluster"][field] = value.clone();
        }
        if let Some(user) = user {
            config["users"][0]["user"] = user;
        }
        let path = self.folder.path().join(name);
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    fn run(&self, mut command: Command, place: &NetNs, environment: &[(&str, &str)]) -> Result<Output> {
        for name in PROXY_VARIABLES {
            command.env_remove(name);
        }
        command.env("HOME", self.folder.path()).envs(environment.iter().copied());
        place.enter(|| command.output())?.context("running a command")
    }

    /// Runs the program: `down`, which asks for a Divert that is not there.
    fn ours(&self, kubeconfig: &Path, place: &NetNs, environment: &[(&str, &str)]) -> Result<Output> {
        let mut command = Command::new(agent::program()?);
        command
            .args(["down", "-n", "default", "--kubeconfig"])
            .arg(kubeconfig)
            .arg("-f")
            .arg(self.folder.path());
        self.run(command, place, environment)
    }

    /// kubectl asks for what anybody may see.
    fn kubectl(&self, kubeconfig: &Path, place: &NetNs, environment: &[(&str, &str)]) -> Result<Output> {
        let mut command = Command::new(kube::program()?);
        command
            .args(["kubectl", "get", "--raw", "/api/v1/namespaces/default", "--kubeconfig"])
            .arg(kubeconfig);
        self.run(command, place, environment)
    }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

fn ensure_reached(output: &Output) -> Result<()> {
    let said = said(output);
    ensure!(output.status.success() && said.contains("nothing to remove"), "{}: {said}", output.status);
    Ok(())
}

/// What is wanted of a user, whoever it is.
fn let_everyone_do_everything(server: &ApiServer) -> Result<()> {
    server.admin().apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "everything"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "default"}],
    }))?;
    server.admin().get(CLUSTER_ROLE_BINDING, "", "everything").map(drop)
}

/// A namespace in which there is nothing but its own loopback.
fn nowhere() -> Result<NamedNetNs> {
    let nowhere = NamedNetNs::new(&format!("{}.nowhere", RunName::next()?))?;
    nowhere.ip_batch("link set lo up\n")?;
    Ok(nowhere)
}

#[test]
fn a_proxy_leads_out_of_where_nothing_else_does() -> Result<()> {
    let desk = Desk::new(ApiServer::shared()?)?;
    let nowhere = nowhere()?;
    let place = nowhere.netns();
    let only = Some(("us er", "p@ss:word", "dXMgZXI6cEBzczp3b3Jk"));
    for (scheme, manner) in [
        ("http://", Manner::default()),
        ("", Manner::default()),
        ("https://", Manner { tls: true, ..Manner::default() }),
        ("socks5://", Manner { socks: true, ..Manner::default() }),
        ("http://", Manner { only, ..Manner::default() }),
        ("socks5://", Manner { socks: true, only, ..Manner::default() }),
    ] {
        let proxy = ForwardProxy::start(place, &desk.server, manner)?;
        let who = if manner.only.is_some() { "us%20er:p%40ss%3Aword@" } else { "" };
        let url = format!("{scheme}{who}{}", proxy.address());
        let plain = desk.kubeconfig("plain", &json!({}), None)?;
        let direct = desk.ours(&plain, place, &[])?;
        ensure!(!direct.status.success(), "{}", said(&direct));

        for variable in ["HTTPS_PROXY", "https_proxy"] {
            let before = proxy.asked().len();
            let told = desk.ours(&plain, place, &[(variable, &url)])?;
            ensure_reached(&told).with_context(|| format!("{variable}={url}"))?;
            assert_eq!(proxy.asked()[before..], ["172.31.0.1:6443"], "by {variable}={url}");
        }
        if !scheme.is_empty() {
            let configured = desk.kubeconfig("configured", &json!({"proxy-url": url}), None)?;
            // Of kubectl, this is for the environment's proxy alone.
            let reached =
                desk.ours(&configured, place, &[("NO_PROXY", "*"), ("HTTPS_PROXY", "http://other")])?;
            ensure_reached(&reached).with_context(|| format!("proxy-url: {url}"))?;
        }
        if manner.only.is_some() {
            let stranger = format!("{scheme}{}", proxy.address());
            let refused = desk.ours(&plain, place, &[("HTTPS_PROXY", &stranger)])?;
            let said = said(&refused);
            let proxy = format!(
                "the proxy {stranger} (of HTTPS_PROXY) does not lead to the API server at https://172.31.0.1:6443"
            );
            ensure!(!refused.status.success() && said.contains(&proxy), "{said}");
        }
    }
    let gone = desk.kubeconfig("gone", &json!({"proxy-url": "http://us:secret@127.0.0.1:9"}), None)?;
    let refused = said(&desk.ours(&gone, place, &[])?);
    for part in
        ["the proxy http://127.0.0.1:9 (of proxy-url in the kubeconfig)", "Connection refused", "NO_PROXY"]
    {
        ensure!(refused.contains(part), "not a word of {part}: {refused}");
    }
    ensure!(!refused.contains("secret"), "{refused}");
    Ok(())
}

/// What is changed of the kubeconfig's cluster, the environment, and whether the proxy is used.
type Row<'a> = (&'a Value, &'a [(&'a str, &'a str)], bool);

#[test]
fn the_environment_chooses_the_way_that_it_chooses_for_kubectl() -> Result<()> {
    let desk = Desk::new(ApiServer::shared()?)?;
    // From here both ways lead there.
    let place = desk.server.netns().netns();
    let proxy = ForwardProxy::start(place, &desk.server, Manner::default())?;
    let url = format!("http://{}", proxy.address());
    let by_proxy = |before: usize| proxy.asked().len() > before;
    let named = json!({"server": "https://kubernetes.default.svc:6443"});
    let loopback = json!({"server": "https://127.0.0.1:6443"});
    let nothing = json!({});
    let rows: &[Row<'_>] = &[
        (&nothing, &[("HTTPS_PROXY", &url)], true),
        (&nothing, &[("https_proxy", &url)], true),
        (&nothing, &[("HTTP_PROXY", &url)], false),
        (&nothing, &[("ALL_PROXY", &url)], false),
        (&nothing, &[("HTTPS_PROXY", &url), ("NO_PROXY", "172.31.0.1")], false),
        (&nothing, &[("HTTPS_PROXY", &url), ("no_proxy", "172.31.0.1:6443")], false),
        (&nothing, &[("HTTPS_PROXY", &url), ("NO_PROXY", "172.31.0.1:443")], true),
        (&nothing, &[("HTTPS_PROXY", &url), ("NO_PROXY", "10.0.0.0/8, 172.16.0.0/12")], false),
        (&nothing, &[("HTTPS_PROXY", &url), ("NO_PROXY", "10.0.0.0/8")], true),
        (&nothing, &[("HTTPS_PROXY", &url), ("NO_PROXY", "example.com,*")], false),
        (&nothing, &[("HTTPS_PROXY", &url), ("NO_PROXY", "example.com"), ("no_proxy", "*")], true),
        (&named, &[("HTTPS_PROXY", &url)], true),
        (&named, &[("HTTPS_PROXY", &url), ("NO_PROXY", "svc")], false),
        (&named, &[("HTTPS_PROXY", &url), ("NO_PROXY", ".DEFAULT.svc")], false),
        (&named, &[("HTTPS_PROXY", &url), ("NO_PROXY", "*.default.svc:6443")], false),
        (&named, &[("HTTPS_PROXY", &url), ("NO_PROXY", "*.default.svc:443")], true),
        (&named, &[("HTTPS_PROXY", &url), ("NO_PROXY", ".kubernetes.default.svc")], true),
        (&named, &[("HTTPS_PROXY", &url), ("NO_PROXY", "fault.svc")], true),
        (&loopback, &[("HTTPS_PROXY", &url)], false),
    ];
    for (cluster, environment, expected) in rows {
        let kubeconfig = desk.kubeconfig("row", cluster, None)?;
        let before = proxy.asked().len();
        let theirs = desk.kubectl(&kubeconfig, place, environment)?;
        assert_eq!(by_proxy(before), *expected, "kubectl with {environment:?}: {}", said(&theirs));
        let before = proxy.asked().len();
        let ours = desk.ours(&kubeconfig, place, environment)?;
        assert_eq!(by_proxy(before), *expected, "with {environment:?}: {}", said(&ours));
        assert_eq!(theirs.status.success(), ours.status.success(), "{environment:?}: {}", said(&ours));
    }
    // Of proxy-url kubectl says the same in other words.
    for (cluster, environment) in [
        (json!({"proxy-url": "ftp://127.0.0.1"}), &[][..]),
        (json!({}), &[("HTTPS_PROXY", "ftp://127.0.0.1")]),
    ] {
        let kubeconfig = desk.kubeconfig("row", &cluster, None)?;
        let refused = said(&desk.ours(&kubeconfig, place, environment)?);
        ensure!(refused.contains("is not understood: write http://HOST:PORT"), "{refused}");
    }
    Ok(())
}

#[test]
fn every_command_takes_a_kubeconfig_and_a_context() -> Result<()> {
    let desk = Desk::new(ApiServer::shared()?)?;
    let place = desk.server.netns().netns();
    let path = desk.kubeconfig("two", &json!({}), None)?;
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    for (kind, dead) in [
        ("clusters", json!({"name": "dead", "cluster": {"server": "https://127.0.0.1:9"}})),
        ("contexts", json!({"name": "dead", "context": {"cluster": "dead", "user": "user"}})),
    ] {
        config[kind].as_array_mut().context("a kubeconfig without lists")?.push(dead);
    }
    config["current-context"] = json!("dead");
    fs::write(&path, config.to_string())?;

    let folder = desk.folder.path().to_str().context("a path in UTF-8")?;
    let two = path.to_str().context("a path in UTF-8")?;
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = Command::new(agent::program()?);
        command.args(arguments);
        desk.run(command, place, environment)
    };
    let down = ["down", "-n", "default", "-f", folder];
    ensure_reached(&run(&[&down[..], &["--kubeconfig", two, "--context", "tests"]].concat(), &[])?)?;
    ensure_reached(&run(&[&down[..], &["--context", "tests"]].concat(), &[("KUBECONFIG", two)])?)?;
    // What is said on the command line comes first.
    ensure_reached(&run(
        &[&down[..], &["--kubeconfig", two, "--context", "tests"]].concat(),
        &[("KUBECONFIG", "/nowhere")],
    )?)?;
    ensure!(!run(&[&down[..], &["--kubeconfig", two]].concat(), &[])?.status.success());
    let agents =
        run(&["status", "--kubeconfig", two, "--context", "tests", "--agents-namespace", "default"], &[])?;
    ensure!(said(&agents).contains("no Pod with labels"), "{}", said(&agents));

    for command in [
        &["run", "--node-name", "n"][..],
        &["controller"],
        &["uninstall"],
        &["status"],
        &["explain", "--pod", "a/b", "--to", "c:80"],
        &["up", "-f", folder],
        &["down", "-f", folder],
    ] {
        let output = run(&[command, &["--kubeconfig", two, "--context", "other"]].concat(), &[])?;
        let said = said(&output);
        let expected = "the kubeconfig has no context other; it has: tests, dead";
        ensure!(!output.status.success() && said.contains(expected), "{command:?}: {said}");
        // A file that was named is not passed over for the service account of a pod.
        let output =
            run(&[command, &["--kubeconfig", "/nowhere"]].concat(), &[("KUBERNETES_SERVICE_HOST", "::1")])?;
        ensure!(said_of_no_file(&output), "{command:?}: {}", self::said(&output));
    }
    Ok(())
}

fn said_of_no_file(output: &Output) -> bool {
    !output.status.success() && said(output).contains("/nowhere")
}

#[test]
fn credentials_come_from_plugins() -> Result<()> {
    let server = ApiServer::shared()?;
    let_everyone_do_everything(&server)?;
    let desk = Desk::new(Arc::clone(&server))?;
    let place = server.netns().netns();
    let token = {
        let config: Value =
            serde_json::from_slice(&fs::read(server.service_account("default", "default")?.kubeconfig())?)?;
        config["users"][0]["user"]["token"].clone()
    };
    let pem = |name: &str| fs::read_to_string(server.folder().join("pki").join(name));
    let certificate = json!({"clientCertificateData": pem("admin.crt")?, "clientKeyData": pem("admin.key")?});
    for (name, status) in [("token", json!({"token": token})), ("certificate", certificate)] {
        let credential = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status,
        });
        fs::write(desk.folder.path().join("credential"), credential.to_string())?;
        let plugin = desk.folder.path().join("plugin");
        // It is told what it is for, and where.
        let script = "#!/bin/sh\n\
                      [ \"$1\" = get ] && [ \"$WHO\" = us ] || exit 3\n\
                      case \"$KUBERNETES_EXEC_INFO\" in *ExecCredential*172.31.0.1*) ;; *) exit 4;; esac\n\
                      cat \"${0%/*}/credential\"\n";
        fs::write(&plugin, script)?;
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
        let user = json!({"exec": {
            // Relative to the kubeconfig.
            "apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "args": ["get"],
            "env": [{"name": "WHO", "value": "us"}], "interactiveMode": "IfAvailable", "provideClusterInfo": true,
        }});
        let kubeconfig = desk.kubeconfig("plugged", &json!({}), Some(user.clone()))?;
        let theirs = desk.kubectl(&kubeconfig, place, &[])?;
        ensure!(theirs.status.success(), "kubectl, {name}: {}", said(&theirs));
        ensure_reached(&desk.ours(&kubeconfig, place, &[])?).with_context(|| name.to_owned())?;

        fs::write(&plugin, "#!/bin/sh\necho the password is wrong >&2\nexit 1\n")?;
        let refused = said(&desk.ours(&kubeconfig, place, &[])?);
        ensure!(refused.contains("the password is wrong"), "{name}: {refused}");
        ensure!(
            refused.contains("https://172.31.0.1:6443") && refused.contains("plugin"),
            "{name}: {refused}"
        );
    }
    Ok(())
}

/// Certificates of an API server, each under a name of its own.
struct Certificates {
    folder: TempDir,
}

impl Certificates {
    fn new() -> Result<Self> {
        let folder = TempDir::new(&RunName::next()?.to_string())?;
        let these = Self { folder };
        let params = |name: &str| -> Result<CertificateParams> {
            let mut params = CertificateParams::new(vec![name.to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, name);
            Ok(params)
        };
        // As `openssl req -x509` makes them.
        let authority = |name: &str| -> Result<CertificateParams> {
            let mut params = params(name)?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Ok(params)
        };
        these.itself("authority.test", authority("authority.test")?)?;
        let mut expired = authority("expired.test")?;
        (expired.not_before, expired.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        these.itself("expired.test", expired)?;
        let mut future = authority("future.test")?;
        (future.not_before, future.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1));
        these.itself("future.test", future)?;
        these.itself("named.test", authority("other.test")?)?;
        let issuer = CertifiedIssuer::self_signed(authority("issuer.test")?, KeyPair::generate()?)?;
        fs::write(these.path("issuer.test.crt"), issuer.pem())?;
        let key = KeyPair::generate()?;
        let mut leaf = params("leaf.test")?;
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        fs::write(these.path("leaf.test.crt"), leaf.signed_by(&key, &issuer)?.pem())?;
        fs::write(these.path("leaf.test.key"), key.serialize_pem())?;
        Ok(these)
    }

    fn itself(&self, name: &str, params: CertificateParams) -> Result<()> {
        let key = KeyPair::generate()?;
        fs::write(self.path(&format!("{name}.crt")), params.self_signed(&key)?.pem())?;
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// The API server shows each to who calls it by that name.
    fn arguments(&self) -> Vec<String> {
        let names = ["authority.test", "expired.test", "future.test", "named.test", "leaf.test"];
        let pair = |name| {
            let (certificate, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
            format!("--tls-sni-cert-key={},{}:{name}", certificate.display(), key.display())
        };
        names.map(pair).into()
    }
}

#[test]
fn certificates_that_kubectl_takes_are_taken_and_others_told() -> Result<()> {
    let certificates = Certificates::new()?;
    let server = ApiServer::start(Options { arguments: certificates.arguments(), ..Options::default() })?;
    let desk = Desk::new(Arc::new(server))?;
    let place = desk.server.netns().netns();
    for (name, trusted, refused) in [
        ("authority.test", "authority.test", None),
        ("leaf.test", "leaf.test", None),
        ("leaf.test", "issuer.test", None),
        ("expired.test", "expired.test", Some("expired")),
        ("future.test", "future.test", Some("not valid yet")),
        ("named.test", "named.test", Some("tls-server-name")),
        ("authority.test", "issuer.test", Some("put it itself into certificate-authority-data")),
        ("leaf.test", "authority.test", Some("put the certificate of the authority that has")),
    ] {
        let authority = certificates.path(&format!("{trusted}.crt"));
        let cluster = json!({"tls-server-name": name, "certificate-authority": authority});
        let kubeconfig = desk.kubeconfig("row", &cluster, None)?;
        let theirs = desk.kubectl(&kubeconfig, place, &[])?;
        let ours = desk.ours(&kubeconfig, place, &[])?;
        let row = format!("{name} by {trusted}: {}\n{}", said(&ours), said(&theirs));
        assert_eq!(theirs.status.success(), refused.is_none(), "{row}");
        match refused {
            None => ensure_reached(&ours).context(row)?,
            Some(why) => {
                let told = said(&ours);
                let server = "the certificate of the API server at https://172.31.0.1:6443 is refused";
                ensure!(!ours.status.success() && told.contains(why) && told.contains(server), "{row}");
            }
        }
    }
    Ok(())
}
