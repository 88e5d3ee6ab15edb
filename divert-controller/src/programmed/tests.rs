//! What is told follows from what agents say, and from since when.

use divert_core::world::{DivertApi, ObjectKind};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::super::cache::BriefPod;
use super::*;

const UID: &str = "u-1";
const SEE: &str = "kubectl get pods";
const DAMPED: Duration = Duration::from_secs(30);

fn pair() -> Pair {
    Pair { developer: "alice".into(), shared: "staging".into() }
}

fn object() -> ObjectRef {
    let kind = ObjectKind::Divert(DivertApi::Divert);
    ObjectRef { kind, namespace: "alice".into(), name: "staging".into() }
}

fn pod(namespace: &str, name: &str, node: &str, ip: &str) -> BriefPod {
    let pod = json!({
        "metadata": {"name": name, "namespace": namespace}, "spec": {"nodeName": node}, "status": {"podIP": ip},
    });
    serde_json::from_value(pod).unwrap()
}

/// What an agent of a node with these pods says where all is well.
fn well(pods: &[&str]) -> Value {
    let mut served = json!({});
    for pod in pods {
        let (namespace, name) = pod.split_once('/').unwrap();
        served[namespace] = json!([name]);
    }
    json!({
        "revision": "r", "planned": true, "served": served,
        "diverts": {UID: {"generation": 2, "accepted": true, "services": ["catalog"], "hosts": ["a.example.com"]}},
    })
}

/// Nodes with one pod each, and their agents, of which nothing is known.
struct Stage {
    programming: Programming,
    now: Instant,
}

impl Stage {
    /// Of a namespace and a node each.
    fn new(pods: &[(&str, &str)]) -> Self {
        let mut it = Self { programming: Programming::new(SEE.into(), 9464, DAMPED), now: Instant::now() };
        for (namespace, node) in pods {
            it.programming.nodes.take_pod(Event::Apply(pod(namespace, "web", node, "10.0.0.1")), it.now);
        }
        it.programming.begin(it.now);
        it
    }

    fn agent(&mut self, name: &str, node: &str) {
        let event = Event::Apply(pod("divert-system", name, node, "10.0.9.9"));
        self.programming.nodes.take_agent(event, self.now);
    }

    /// Has each agent that is asked now answer; gives who was.
    fn answer(&mut self, answer: impl Fn(&str) -> Result<Value, String>) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(question) = self.programming.nodes.agents.next(self.now) {
            let name = question.agent.1.to_string();
            let reply = answer(&name).map(|it| Some(serde_json::from_value(it).unwrap()));
            self.programming.nodes.answered(&question, reply, self.now);
            asked.push(name);
        }
        asked.sort();
        asked
    }

    fn tell_with(&mut self, before: Before<'_>) -> Report {
        let pair = pair();
        let subject = Subject {
            uid: UID,
            generation: 2,
            pair: &pair,
            services: vec!["catalog"],
            hosts: vec!["a.example.com"],
            asked: None,
        };
        self.programming.tell(&object(), subject, before, self.now)
    }

    fn tell(&mut self, before: Before<'_>) -> (Condition, bool) {
        match self.tell_with(before) {
            Report::Now(said, answers) => (said, answers),
            Report::Later => panic!("there is something to tell"),
        }
    }

    fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

const NEW: Before<'_> = Before { is_programmed: false, reason: None, message: "", request: None };
const WELL: Before<'_> =
    Before { is_programmed: true, reason: Some(KIND), message: "as before", request: None };

#[test]
fn it_is_true_when_each_agent_has_all_of_it_and_else_the_node_is_named_and_why() {
    type Change = fn(&mut Value);
    let cases: &[(Change, &str, &[&str])] = &[
        (|_| {}, KIND, &["serves it"]),
        // Ahead of us.
        (|it| it["diverts"][UID]["generation"] = json!(3), KIND, &["serves it"]),
        (|it| it["diverts"][UID]["generation"] = json!(1), PENDING, &["n2"]),
        (|it| it["diverts"] = json!({}), PENDING, &["not taken it up on n2"]),
        (|it| it["diverts"][UID]["accepted"] = json!(false), PENDING, &["n2"]),
        (|it| it["diverts"][UID]["services"] = json!([]), PENDING, &["n2"]),
        (|it| it["diverts"][UID]["hosts"] = json!(["b.example.com"]), PENDING, &["n2"]),
        (|it| it["planned"] = json!(false), "AgentsNotReady", &["n2 (a2 has not listed", SEE]),
        (|it| it["stale"] = json!(["watching Divert: refused"]), "AgentsStale", &["n2 (watching Divert"]),
        (|it| it["unsettled"] = json!(3), "CapturesRefused", &["n2 (3)", "--max-captures"]),
        (|it| it["served"] = json!({}), "PodsPodNote", &["alice/web on n2 (its agent does not know"]),
        (
            |it| {
                it["served"] = json!({});
                it["direct"] = json!([{"pod": "alice/web", "reason": "filtered", "why": "packet rules"}]);
            },
            "PodsPodNote",
            &["alice/web on n2 (packet rules)", "divert.dev/capture=false"],
        ),
    ];
    for (number, (change, reason, says)) in cases.iter().enumerate() {
        let mut it = Stage::new(&[("staging", "n1"), ("alice", "n2")]);
        it.agent("a1", "n1");
        it.agent("a2", "n2");
        assert_eq!(it.tell_with(NEW), Report::Later, "until they have been asked");
        let asked = it.answer(|name| {
            let mut says = well(if name == "a1" { &["staging/web"] } else { &["alice/web"] });
            if name == "a2" {
                change(&mut says);
            }
            Ok(says)
        });
        assert_eq!(asked, ["a1", "a2"]);
        let (said, answers) = it.tell(NEW);
        assert_eq!(
            (said.reason, said.status, answers),
            (*reason, *reason == KIND, *reason == KIND),
            "{number}"
        );
        for words in *says {
            assert!(said.message.contains(words), "{number}: {}", said.message);
        }
    }
}

#[test]
fn pods_of_others_that_an_agent_leaves_direct_are_not_waited_for() {
    let mut it = Stage::new(&[("staging", "n1"), ("bob", "n1")]);
    it.agent("a1", "n1");
    it.answer(|_| Ok(well(&["staging/web"])));
    assert!(it.tell(NEW).0.status);
}

#[test]
fn an_agent_that_is_silent_is_asked_again_soon_and_named() {
    let mut it = Stage::new(&[("staging", "n1")]);
    it.agent("a1", "n1");
    it.answer(|_| Err("10.0.9.9:9464: refused".into()));
    let (said, _) = it.tell(NEW);
    assert_eq!(said.reason, "AgentsNotReady");
    assert!(said.message.contains("n1 (a1 does not answer: 10.0.9.9:9464: refused)"), "{}", said.message);
    let wake = it.programming.nodes.agents.wake().unwrap();
    assert!(wake <= it.now + Duration::from_secs(1), "{:?}", wake - it.now);
    it.now = wake;
    assert_eq!(it.answer(|_| Ok(well(&["staging/web"]))), ["a1"]);
    assert!(it.tell(NEW).0.status);
    assert!(it.programming.nodes.agents.wake().unwrap() > it.now + Duration::from_secs(10), "at a slow beat");
}

#[test]
fn a_node_that_no_agent_is_for_is_waited_for_a_moment_and_named_where_it_has_pods_of_the_divert() {
    for (namespace, named) in [("bob", false), ("staging", true)] {
        let mut it = Stage::new(&[("staging", "n1"), (namespace, "windows")]);
        it.agent("a1", "n1");
        it.answer(|_| Ok(well(&["staging/web"])));
        // Of the two pods of one name, the last is where it is.
        let pod = pod("staging", "other", "n1", "10.0.0.2");
        it.programming.nodes.take_pod(Event::Apply(pod), it.now);
        it.answer(|_| Ok(well(&["staging/web"])));
        let mut says = well(&[]);
        says["served"] = json!({"staging": ["web", "other"]});
        it.programming.nodes.agents.urge(it.now);
        it.after(1);
        it.answer(|_| Ok(says.clone()));
        let (said, _) = it.tell(NEW);
        assert!(said.reason == "AgentsNotReady" && said.message.contains("windows (none yet)"), "{said:?}");
        let due = it.programming.due(&object()).unwrap();
        assert!(due <= it.now + Duration::from_secs(10));
        it.now = due;
        let (said, _) = it.tell(NEW);
        assert!(said.status, "{said:?}");
        assert_eq!(said.message.contains("windows"), named, "{}", said.message);
        assert_eq!(said.message.contains("divert.dev/capture"), named, "{}", said.message);
        // Whose agent has gone may get the next one.
        it.programming.nodes.take_agent(Event::Delete(self::pod("divert-system", "a1", "n1", "")), it.now);
        let (said, _) = it.tell(NEW);
        assert!(said.message.contains("n1 (none yet)"), "{said:?}");
    }
}

#[test]
fn where_no_agent_is_for_any_of_its_pods_nobody_is_diverted() {
    let mut it = Stage::new(&[("bob", "n1"), ("staging", "n2")]);
    it.agent("a1", "n1");
    it.answer(|_| Ok(well(&["bob/web"])));
    it.after(20);
    let (said, _) = it.tell(NEW);
    assert_eq!((said.status, said.reason), (false, "NoAgents"), "{said:?}");
    let mut it = Stage::new(&[]);
    it.after(20);
    assert_eq!(it.tell(NEW).0.reason, "NoAgents", "none at all");
}

#[test]
fn an_agent_that_is_yet_to_be_scheduled_is_waited_for_by_the_node_that_it_is_made_for() {
    let mut it = Stage::new(&[("staging", "n1")]);
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [term]}}});
    let pending =
        json!({"metadata": {"name": "a1", "namespace": "divert-system"}, "spec": {"affinity": affinity}});
    it.programming.nodes.take_agent(Event::Apply(serde_json::from_value(pending).unwrap()), it.now);
    it.after(3600);
    let (said, _) = it.tell(NEW);
    assert!(said.message.contains("n1 (a1 has no address yet)"), "{said:?}");
}

#[test]
fn of_two_agents_of_a_node_the_one_that_serves_counts_and_who_follows_it_once_it_has_a_plan() {
    let mut it = Stage::new(&[("staging", "n1")]);
    it.agent("old", "n1");
    it.agent("new", "n1");
    let answer =
        |new: Value| move |name: &str| Ok(if name == "old" { well(&["staging/web"]) } else { new.clone() });
    it.answer(answer(json!({"standingBy": true, "planned": false})));
    assert!(it.tell(NEW).0.status, "that it starts matters to nobody");
    it.programming.nodes.agents.urge(it.now);
    it.after(1);
    it.answer(answer(json!({"standingBy": true, "planned": true})));
    assert_eq!(it.tell(NEW).0.reason, PENDING, "it may take over at any moment");
}

#[test]
fn what_was_well_is_told_to_be_so_no_longer_when_it_has_not_been_for_a_while() {
    let mut it = Stage::new(&[("staging", "n1")]);
    it.agent("a1", "n1");
    it.answer(|_| Ok(well(&["staging/web"])));
    it.after(3);
    // A node comes, and its agent a while later.
    it.programming.nodes.take_pod(Event::Apply(pod("bob", "web", "n2", "10.0.0.3")), it.now);
    it.agent("a2", "n2");
    let (said, _) = it.tell(WELL);
    assert_eq!((said.status, said.message.as_str()), (true, "as before"), "nothing is written");
    assert_eq!(it.programming.due(&object()), Some(it.now + DAMPED));
    // A new Divert waits for it.
    assert_eq!(it.tell(NEW).0.reason, "AgentsNotReady");
    it.after(29);
    assert!(it.tell(WELL).0.status);
    it.answer(|name| Ok(well(if name == "a1" { &["staging/web"] } else { &["bob/web"] })));
    assert!(it.tell(WELL).0.status);
    // Well again, and the time begins anew.
    it.agent("a3", "n3");
    it.programming.nodes.take_pod(Event::Apply(pod("bob", "api", "n3", "10.0.0.4")), it.now);
    it.after(2);
    assert!(it.tell(WELL).0.status);
    it.after(30);
    let (said, _) = it.tell(WELL);
    assert!(!said.status && said.message.contains("n3"), "{said:?}");
}

#[test]
fn a_request_is_answered_when_every_agent_was_asked_after_it_and_by_no_older_well_being() {
    let mut it = Stage::new(&[("staging", "n1")]);
    it.agent("a1", "n1");
    it.answer(|_| Ok(well(&["staging/web"])));
    let asked = Before { request: Some("q1"), ..WELL };
    it.after(1);
    let (said, answers) = it.tell(asked);
    assert_eq!((said.status, answers), (true, false), "what was known is older");
    let wake = it.programming.nodes.agents.wake().unwrap();
    assert!(wake <= it.now, "somebody waits");
    it.now = it.now.max(wake);
    it.after(1);
    assert_eq!(it.answer(|_| Err("refused".into())), ["a1"]);
    let (said, answers) = it.tell(asked);
    assert_eq!((said.reason, answers), ("AgentsNotReady", false), "not damped: somebody waits");
    it.after(1);
    assert_eq!(it.answer(|_| Ok(well(&["staging/web"]))), ["a1"]);
    assert!(it.tell(asked).1);
    let another = Before { request: Some("q2"), ..WELL };
    it.after(1);
    assert!(!it.tell(another).1, "each has an answer of its own");
}

#[test]
fn a_sentence_in_other_words_waits_for_others() {
    let mut it = Stage::new(&[("staging", "n1"), ("alice", "n2")]);
    it.agent("a1", "n1");
    it.agent("a2", "n2");
    it.answer(|_| Err("refused".into()));
    let (first, _) = it.tell(NEW);
    let message = first.message.clone();
    let before =
        Before { is_programmed: false, reason: Some("AgentsNotReady"), message: &message, request: None };
    it.after(1);
    it.answer(|name| if name == "a1" { Ok(well(&["staging/web"])) } else { Err("refused".into()) });
    assert_eq!(it.tell(before).0, first);
    let due = it.programming.due(&object()).unwrap();
    it.now = due;
    assert_ne!(it.tell(before).0, first);
}

/// For people: a time that is asserted fails on a busy machine.
#[test]
fn it_costs_little_with_many_diverts_and_nodes() {
    const DIVERTS: usize = 200;
    const NODES: usize = 50;
    let nodes: Vec<_> = (0..NODES).map(|node| format!("n{node}")).collect();
    let mut it = Stage::new(&[]);
    for node in &nodes {
        it.programming.nodes.take_pod(Event::Apply(pod("staging", node, node, "10.0.0.1")), it.now);
        it.agent(&format!("a-{node}"), node);
    }
    let mut says = well(&[]);
    says["served"] = json!({"staging": nodes});
    for divert in 0..DIVERTS {
        says["diverts"][format!("u-{divert}")] = says["diverts"][UID].clone();
    }
    let began = std::time::Instant::now();
    assert_eq!(it.answer(|_| Ok(says.clone())).len(), NODES);
    let took = began.elapsed();
    let began = std::time::Instant::now();
    for divert in 0..DIVERTS {
        let uid = format!("u-{divert}");
        let pair = pair();
        let subject = Subject {
            uid: &uid,
            generation: 2,
            pair: &pair,
            services: vec!["catalog"],
            hosts: vec!["a.example.com"],
            asked: None,
        };
        assert!(verdict(&it.programming.nodes, SEE, &subject, it.now).said.status);
    }
    eprintln!("{NODES} answers of {DIVERTS} Diverts taken in {took:?}, all judged in {:?}", began.elapsed());
}
