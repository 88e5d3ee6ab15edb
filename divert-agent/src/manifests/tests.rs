//! Files in, changes and problems out, on real directories.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use divert_core::manifests::testing::objects;
use divert_core::manifests::{Problem, Report};
use divert_core::world::WorldChange;

use super::*;

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let name = format!("divert-manifests-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name).join("manifests");
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.0.join(name)).unwrap();
    }

    fn open(&self) -> (Manifests, Refresh) {
        Manifests::open(&self.0).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: staging\nspec:\n  ports:\n  - port: {port}\n"
    )
}

/// `+Namespace a`, `-Service staging/b`.
fn changes(refresh: &Refresh) -> Vec<String> {
    let show = |change: &WorldChange| match change {
        WorldChange::Upsert(object) => format!("+{}", object.reference()),
        WorldChange::Delete(reference) => format!("-{reference}"),
    };
    refresh.changes.iter().map(show).collect()
}

/// All problems, with the file's name for its path.
fn problems(manifests: &Manifests) -> Vec<String> {
    let show = |problem: &Problem| {
        let name = problem.path.file_name().unwrap().into();
        Problem { path: name, ..problem.clone() }.to_string()
    };
    manifests.report().problems.iter().map(show).collect()
}

#[test]
fn several_documents_lists_json_and_empty_ones() {
    let dir = Dir::new();
    dir.write("a.yaml", &format!("# only a comment\n---\n{}---\n\n---\n{}", namespace("a"), namespace("b")));
    dir.write(
        "b.yml",
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: c}}\n\
         - apiVersion: v1\n  kind: NamespaceList\n  items:\n  - metadata: {name: d}\n",
    );
    dir.write("c.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "e"}}"#);
    dir.write(".hidden.yaml", &namespace("hidden"));
    dir.write("notes.txt", &namespace("text"));
    dir.write("empty.yaml", "");
    fs::create_dir(dir.0.join("folder.yaml")).unwrap();
    let (manifests, first) = dir.open();
    assert_eq!(problems(&manifests), [""; 0]);
    assert_eq!(
        changes(&first),
        ["+Namespace a", "+Namespace b", "+Namespace c", "+Namespace d", "+Namespace e"]
    );
}

#[test]
fn errors_name_file_line_document_and_field() {
    let dir = Dir::new();
    for (text, expected) in [
        (service("s", "70000"), "x.yaml:8: document 1 (Service staging/s): spec.ports[0].port: 70000 is no port; write 1 to 65535"),
        (
            service("s", "http"),
            "x.yaml:8: document 1 (Service staging/s): spec.ports[0].port: invalid type: string \"http\", expected i32",
        ),
        (
            "apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {name: d, namespace: alice}\nspec:\n  \
             sharedNamspace: staging\n".to_owned(),
            "x.yaml:5: document 1 (Divert alice/d): spec.sharedNamspace: unknown field `sharedNamspace`, expected one \
             of `sharedNamespace`, `services`, `hosts`, `inject`, `onUnavailable`, `names`",
        ),
        (
            format!("{}---\n{}", namespace("gone"), "apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {name: d, namespace: alice}\nspec:\n  sharedNamespace: staging\n  onUnavailable: shared\n"),
            "x.yaml:11: document 2 (Divert alice/d): spec.onUnavailable: unknown variant `shared`, expected `Fail` or `Shared`",
        ),
        (
            "apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {name: d, namespace: alice}\nspec: {services: [a]}\n".to_owned(),
            "x.yaml:4: document 1 (Divert alice/d): spec: missing field `sharedNamespace`",
        ),
        (
            "apiVersion: divert.dev/v1alpha1\nkind: Divert\nmetadata: {name: d}\nspec: {sharedNamespace: staging}\n".to_owned(),
            "x.yaml:3: document 1 (Divert d): metadata.namespace: it is missing; files have no default namespace",
        ),
        (
            "apiVersion: divert.dev/v1\nkind: Divert\nmetadata: {name: d, namespace: alice}\n".to_owned(),
            "x.yaml:1: document 1 (Divert alice/d): apiVersion: there is no Divert in divert.dev/v1: write \
             divert.dev/v1alpha1 or okteto.com/v1",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: staging\n  labels:\n    divert.dev/shared: true\n".to_owned(),
            "x.yaml:6: document 1 (Namespace staging): metadata.labels.divert.dev/shared: invalid type: boolean \
             `true`, expected a string; put the value in quotes",
        ),
        (
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\
             - apiVersion: v1\n  kind: Pod\n  metadata: {name: p, namespace: a}\n  status:\n    podIP: 127.0.0.1\n".to_owned(),
            "x.yaml:9: document 1 (Pod a/p): items[1].status.podIP: `127.0.0.1` is a loopback address, which every \
             pod has for itself; write the address of a pod or service",
        ),
        ("just text\n".to_owned(), "x.yaml:1: document 1: kind: it is missing, so this is no object of Kubernetes"),
        ("kind: Pod\n".to_owned(), "x.yaml:1: document 1 (Pod): apiVersion: it is missing, so this is no object of Kubernetes"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: a}\n".to_owned(),
            "x.yaml:1: document 1 (Deployment a/d): not a kind that is read here; ignored",
        ),
    ] {
        dir.write("x.yaml", &text);
        let (manifests, _) = dir.open();
        assert_eq!(problems(&manifests), [expected], "{text}");
    }
}

#[test]
fn a_file_that_is_no_yaml_or_json_is_named_with_the_line() {
    let dir = Dir::new();
    dir.write("a.yaml", &format!("{}---\nkind: [\n", namespace("a")));
    dir.write("b.json", "{\n\"kind\": }");
    dir.write("c.yaml", "kind: Pod\nkind: Service\n");
    fs::write(dir.0.join("d.yaml"), b"a: 1\nb: \xff\n").unwrap();
    symlink("nowhere", dir.0.join("e.yaml")).unwrap();
    let (manifests, first) = dir.open();
    let problems = problems(&manifests);
    assert_eq!(problems.len(), 5, "{problems:#?}");
    for (problem, start) in problems.iter().zip([
        "a.yaml:",
        "b.json:2: not JSON: ",
        "c.yaml:2: not YAML: ",
        "d.yaml:2: not UTF-8",
        "e.yaml: cannot read it: ",
    ]) {
        assert!(problem.starts_with(start), "{problem}");
        assert!(!problem.contains('\n'), "{problem}");
    }
    assert!(first.changes.is_empty());
}

#[test]
fn a_file_that_does_not_parse_keeps_all_it_last_gave() {
    let dir = Dir::new();
    dir.write("a.yaml", &(namespace("a") + "---\n" + &namespace("b")));
    let (mut manifests, _) = dir.open();
    dir.write("a.yaml", &(namespace("a") + "---\n{"));
    let refresh = manifests.refresh(&Hints::default());
    assert_eq!(changes(&refresh), [""; 0]);
    assert_eq!(refresh.appeared.len(), 1);
    assert!(
        problems(&manifests)[0].ends_with("; what it last gave stays in force"),
        "{:?}",
        problems(&manifests)
    );
    // The same again is no news.
    dir.write("a.yaml", &(namespace("a") + "---\n{"));
    assert!(manifests.refresh(&Hints::default()).is_empty());
    dir.write("a.yaml", &namespace("a"));
    let refresh = manifests.refresh(&Hints::default());
    assert_eq!(changes(&refresh), ["-Namespace b"]);
    assert_eq!((refresh.appeared.len(), refresh.resolved.len()), (0, 1));
    assert_eq!(problems(&manifests), [""; 0]);
}

#[test]
fn an_invalid_document_keeps_its_object_and_stops_no_other() {
    let dir = Dir::new();
    let file = |s: &str, t: &str| service("s", s) + "---\n" + &service("t", t) + "---\n" + &namespace("gone");
    dir.write("a.yaml", &file("80", "80"));
    let (mut manifests, _) = dir.open();
    // s is invalid, t changes, n goes.
    dir.write("a.yaml", &(service("s", "0") + "---\n" + &service("t", "81")));
    let refresh = manifests.refresh(&Hints::default());
    assert_eq!(changes(&refresh), ["-Namespace gone", "+Service staging/t"]);
    assert_eq!(
        problems(&manifests),
        [
            "a.yaml:8: document 1 (Service staging/s): spec.ports[0].port: 0 is no port; write 1 to 65535; its last \
          good version stays in force"
        ]
    );
    // Gone from the file, it is gone, invalid or not.
    dir.write("a.yaml", &service("t", "81"));
    assert_eq!(changes(&manifests.refresh(&Hints::default())), ["-Service staging/s"]);
}

#[test]
fn a_document_that_does_not_say_what_it_is_takes_nothing_away() {
    let dir = Dir::new();
    dir.write("a.yaml", &(service("s", "80") + "---\n" + &namespace("gone")));
    let (mut manifests, _) = dir.open();
    dir.write("a.yaml", &service("s", "80").replace("  name: s\n", ""));
    assert_eq!(changes(&manifests.refresh(&Hints::default())), ["-Namespace gone"]);
    dir.write("a.yaml", &service("s", "80").replace("kind: Service\n", ""));
    assert_eq!(changes(&manifests.refresh(&Hints::default())), [""; 0]);
}

#[test]
fn of_an_object_in_two_files_the_first_counts() {
    let dir = Dir::new();
    dir.write("b.yaml", &service("s", "80"));
    let (mut manifests, first) = dir.open();
    assert_eq!(changes(&first), ["+Service staging/s"]);
    dir.write("c.yaml", &service("s", "81"));
    assert_eq!(changes(&manifests.refresh(&Hints::default())), [""; 0]);
    let [problem] = &problems(&manifests)[..] else { panic!("{:?}", problems(&manifests)) };
    assert!(problem.starts_with("c.yaml: document 1 (Service staging/s): "), "{problem}");
    assert!(problem.contains("b.yaml has it too, and is the one that counts"), "{problem}");
    dir.write("a.yaml", &service("s", "82"));
    assert_eq!(changes(&manifests.refresh(&Hints::default())), ["+Service staging/s"]);
    assert_eq!(problems(&manifests).len(), 2);
    dir.remove("a.yaml");
    dir.remove("b.yaml");
    assert_eq!(changes(&manifests.refresh(&Hints::default())), ["+Service staging/s"]);
    assert_eq!(problems(&manifests), [""; 0]);
    dir.write("c.yaml", &(service("s", "81") + "---\n" + &service("s", "83")));
    assert_eq!(changes(&manifests.refresh(&Hints::default())), [""; 0]);
    assert_eq!(
        problems(&manifests),
        [
            "c.yaml: document 2 (Service staging/s): document 1 is the same object, and the one that counts: remove one"
        ]
    );
}

#[test]
fn a_directory_that_vanishes_keeps_what_it_last_gave() {
    let dir = Dir::new();
    dir.write("a.yaml", &namespace("a"));
    let (mut manifests, _) = dir.open();
    fs::rename(&dir.0, dir.0.with_extension("away")).unwrap();
    let refresh = manifests.refresh(&Hints::default());
    assert_eq!((changes(&refresh).len(), refresh.appeared.len()), (0, 1));
    assert!(problems(&manifests)[0].contains("stays in force"), "{:?}", problems(&manifests));
    fs::rename(dir.0.with_extension("away"), &dir.0).unwrap();
    assert_eq!(manifests.refresh(&Hints::default()).resolved.len(), 1);
    let missing = Manifests::open(&dir.0.join("missing")).unwrap_err().to_string();
    assert!(missing.contains("create it, or name another with --manifests"), "{missing}");
}

#[test]
fn a_service_without_slices_gets_endpoints_from_its_pods() {
    let pod = |name: &str, rest: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: staging, labels: {{app: s}}}}\n{rest}"
        )
    };
    let spec =
        "spec: {selector: {app: s}, ports: [{name: http, port: 80, targetPort: web}, {name: x, port: 81}]}";
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: staging}}\n{spec}\n")
        + &pod(
            "a",
            "spec: {hostname: a-0, subdomain: s, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}\nstatus: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}\n",
        )
        + &pod(
            "b",
            "spec: {containers: [{name: c, ports: [{name: web, containerPort: 9090}]}]}\nstatus: {podIP: 10.0.0.2, conditions: [{type: Ready, status: 'True'}]}\n",
        )
        + &pod(
            "c",
            "spec: {hostname: c-0, subdomain: other}\nstatus: {podIP: 10.0.0.3, conditions: [{type: Ready, status: 'False'}]}\n",
        )
        + &pod("d", "status: {podIP: 10.0.0.4, phase: Failed}\n")
        + &pod("e", "status: {podIP: 10.0.0.5}\n")
            .replace("name: e,", "name: e, deletionTimestamp: '2026-01-01T00:00:00Z',")
        + &pod("f", "status: {podIP: 10.0.0.6}\n").replace("app: s", "app: t")
        + &pod("g", "status: {}\n");
    let slices = |text: &str| {
        let mut lines = Vec::new();
        for change in objects(text) {
            let WorldChange::Upsert(divert_core::world::Object::EndpointSlice(slice)) = change else {
                continue;
            };
            for endpoint in slice.endpoints {
                let ports: Vec<_> =
                    slice.ports.iter().map(|port| format!("{}={}", port.name, port.number)).collect();
                let state = match (endpoint.ready, endpoint.serving_terminating) {
                    (true, false) => "ready",
                    (false, true) => "terminating",
                    (false, false) => "unready",
                    (true, true) => "both",
                };
                let hostname = endpoint.hostname.as_deref().unwrap_or("-");
                lines.push(format!("{} {} {state} {hostname}", endpoint.address, ports.join(",")));
            }
        }
        lines.sort();
        lines
    };
    assert_eq!(
        slices(&text),
        [
            "10.0.0.1 http=8080,x=81 ready a-0",
            "10.0.0.2 http=9090,x=81 ready -",
            "10.0.0.3 x=81 unready -",
            "10.0.0.5 x=81 terminating -",
            "fd00::1 http=8080,x=81 ready a-0",
        ]
    );
    let published =
        slices(&text.replace("spec: {selector", "spec: {publishNotReadyAddresses: true, selector"));
    assert_eq!(published[2], "10.0.0.3 x=81 ready -");
    // A slice of its own, and its pods are not asked.
    let own = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {name: own, \
               namespace: staging, labels: {kubernetes.io/service-name: s}}\nendpoints: [{addresses: [10.9.9.9]}]\n";
    assert_eq!(slices(&(text + own)), ["10.9.9.9  ready -"]);
}

/// A watched directory, as its user sees it.
struct Watched {
    dir: Dir,
    refreshes: Receiver<Refresh>,
    _watch: Watch,
}

impl Watched {
    fn new(dir: Dir) -> Self {
        let (sender, refreshes) = channel();
        let watch =
            watch(&dir.0, move |refresh, _: &Report| sender.send(refresh).unwrap_or_default()).unwrap();
        // The first reading is there at once.
        refreshes.try_recv().unwrap();
        Self { dir, refreshes, _watch: watch }
    }

    /// The next changes, which must come in time.
    #[track_caller]
    fn expect(&self, expected: &[&str]) {
        let refresh = self.refreshes.recv_timeout(Duration::from_secs(5)).expect("a change is noticed");
        assert_eq!(changes(&refresh), expected);
    }
}

#[test]
fn writes_renames_and_removals_are_noticed() {
    let watched = Watched::new(Dir::new());
    watched.dir.write("a.yaml", &namespace("a"));
    watched.expect(&["+Namespace a"]);
    // As editors do: a new file over the old one.
    watched.dir.write(".a.yaml.swp", &namespace("b"));
    fs::rename(watched.dir.0.join(".a.yaml.swp"), watched.dir.0.join("a.yaml")).unwrap();
    watched.expect(&["-Namespace a", "+Namespace b"]);
    // As vim does: the old one moved away first.
    fs::rename(watched.dir.0.join("a.yaml"), watched.dir.0.join("a.yaml~")).unwrap();
    watched.dir.write("a.yaml", &(namespace("b") + "---\n" + &namespace("c")));
    watched.dir.remove("a.yaml~");
    watched.expect(&["+Namespace c"]);
    watched.dir.remove("a.yaml");
    watched.expect(&["-Namespace b", "-Namespace c"]);
}

#[test]
fn a_file_is_not_read_while_it_is_written() {
    use std::io::Write as _;
    let dir = Dir::new();
    dir.write("a.yaml", &(namespace("a") + "---\n" + &namespace("b")));
    let watched = Watched::new(dir);
    // Truncated, then half of it, which parses and lacks b.
    let mut file = fs::File::create(watched.dir.0.join("a.yaml")).unwrap();
    file.write_all(namespace("a").as_bytes()).unwrap();
    file.sync_all().unwrap();
    // Another file's change is taken meanwhile, which shows that a.yaml was seen and left alone.
    watched.dir.write("c.yaml", &namespace("c"));
    watched.expect(&["+Namespace c"]);
    file.write_all(format!("---\n{}---\n{}", namespace("b"), namespace("d")).as_bytes()).unwrap();
    drop(file);
    watched.expect(&["+Namespace d"]);
}

#[test]
fn a_mounted_config_map_is_swapped_as_one() {
    let dir = Dir::new();
    let version = |name: &str, text: &str| {
        fs::create_dir(dir.0.join(name)).unwrap();
        fs::write(dir.0.join(name).join("a.yaml"), text).unwrap();
    };
    version("..2026_1", &namespace("a"));
    version("..2026_2", &namespace("b"));
    symlink("..2026_1", dir.0.join("..data")).unwrap();
    symlink("..data/a.yaml", dir.0.join("a.yaml")).unwrap();
    let watched = Watched::new(dir);
    symlink("..2026_2", watched.dir.0.join("..data_tmp")).unwrap();
    fs::rename(watched.dir.0.join("..data_tmp"), watched.dir.0.join("..data")).unwrap();
    watched.expect(&["-Namespace a", "+Namespace b"]);
}

#[test]
fn a_directory_that_comes_back_is_followed_again() {
    let dir = Dir::new();
    dir.write("a.yaml", &namespace("a"));
    let watched = Watched::new(dir);
    let away = watched.dir.0.with_extension("away");
    fs::rename(&watched.dir.0, &away).unwrap();
    let refresh = watched.refreshes.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!((changes(&refresh).len(), refresh.appeared.len()), (0, 1));
    // Another one in its place.
    let fresh = watched.dir.0.with_extension("fresh");
    fs::create_dir(&fresh).unwrap();
    fs::write(fresh.join("b.yaml"), namespace("b")).unwrap();
    fs::rename(&fresh, &watched.dir.0).unwrap();
    watched.expect(&["-Namespace a", "+Namespace b"]);
    watched.dir.write("b.yaml", &namespace("c"));
    watched.expect(&["-Namespace b", "+Namespace c"]);
}
