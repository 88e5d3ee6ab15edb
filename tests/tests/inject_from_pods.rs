//! semantics.md, Injection: requests of a developer's own pods towards the shared namespace get the key.

use anyhow::Result;
use divert_tests::agent::Agent;
use divert_tests::fixture::{BOB, Fixture, PORT};
use divert_tests::http::{Http, Response};
use divert_tests::lab::{ClusterIps, FAMILIES, Family};
use divert_tests::manifest;
use divert_tests::peer::Peer;
use divert_tests::script::is_captured;
use divert_tests::server::Echo;
use divert_tests::wait;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The usual town; `staging/api`, which no developer runs; and a pod of each developer that calls.
struct Town {
    agent: Agent,
    servers: Vec<Echo>,
    api: ClusterIps,
    town: Fixture,
}

impl Town {
    /// With servers of its own, or none.
    fn new(serve: bool) -> Result<Self> {
        let town = Fixture::with_pods(&["staging/api", "alice/dev", "bob/dev"])?;
        let api = town.lab.cluster_ips(&town.lab.pod("staging/api"))?;
        town.manifests.put("api", &[manifest::service("staging", "api", api, &[PORT.into()])])?;
        town.divert("bob")?;
        let pods = ["staging/web", "staging/api", "alice/web", "bob/web"];
        let started = pods.iter().filter(|_| serve).map(|pod| Echo::start(&town.lab.pod(pod), PORT));
        Ok(Self { servers: started.collect::<Result<_>>()?, agent: town.agent()?, api, town })
    }

    fn connect(&self, from: &str, to: ClusterIps, family: Family) -> Result<Http> {
        Ok(Http::new(self.town.lab.pod(from).connect(to.address(family, PORT))?))
    }

    fn web(&self, from: &str) -> Result<Http> {
        self.connect(from, self.town.web, Family::V4)
    }
}

/// Who answered, and what reached them.
fn told(response: &Response) -> (String, String) {
    (response.served_by().unwrap_or_default(), response.text())
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: web\r\n{fields}\r\n")
}

#[test]
fn requests_to_what_she_has_and_what_she_lacks_get_her_key() -> Result<()> {
    let town = Town::new(true)?;
    let injected = |key: &str| get(&format!("baggage: okteto-divert={key}\r\n"));
    for family in FAMILIES {
        for key in ["alice", "bob"] {
            let dev = format!("{key}/dev");
            let mut http = town.connect(&dev, town.town.web, family)?;
            for _ in 0..3 {
                assert_eq!(told(&http.get("/", &[])?), (format!("{key}/web"), injected(key)));
            }
            let mut http = town.connect(&dev, town.api, family)?;
            assert_eq!(told(&http.get("/", &[])?), ("staging/api".into(), injected(key)));
            assert_eq!(http.stream().peer_addr()?, town.api.address(family, PORT));
        }
    }
    // Nobody else's.
    for ips in [town.town.web, town.api] {
        let mut http = town.connect("staging/client", ips, Family::V4)?;
        assert_eq!(told(&http.get("/", &[])?).1, get(""));
    }
    Ok(())
}

#[test]
fn what_is_there_already_stays() -> Result<()> {
    let town = Town::new(true)?;
    let mut http = town.web("alice/dev")?;
    // A request that carries a key is left alone, whoever's it is.
    assert_eq!(told(&http.get("/", &[BOB])?), ("bob/web".into(), get("baggage: okteto-divert=bob\r\n")));
    let carol = ("Baggage", "divert=carol");
    assert_eq!(told(&http.get("/", &[carol])?), ("staging/web".into(), get("Baggage: divert=carol\r\n")));
    // Other members are merged with, in the first field, and everything else is as it was.
    let fields = [("X", " y"), ("BAGGAGE", "user=42;p=1 , a=b"), ("baggage", "c=d"), ("Z", "1")];
    let merged = get("X:  y\r\nBAGGAGE: okteto-divert=alice,user=42;p=1 , a=b\r\nbaggage: c=d\r\nZ: 1\r\n");
    assert_eq!(told(&http.get("/", &fields)?), ("alice/web".into(), merged));
    // With a body, with a request right behind it, and with an offer of h2c that goes.
    let post =
        |fields: &str| format!("POST /x HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n{fields}\r\nhello");
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n";
    http.send((post("") + &get(offer)).as_bytes())?;
    let expected = post("baggage: okteto-divert=alice\r\n");
    assert_eq!(told(&http.response()?), ("alice/web".into(), expected));
    assert_eq!(told(&http.response()?).1, get("baggage: okteto-divert=alice\r\n"));
    Ok(())
}

#[test]
fn her_own_services_are_not_captured() -> Result<()> {
    let town = Town::new(true)?;
    let own = town.town.developers[0];
    let mut http = town.connect("alice/dev", own, Family::V4)?;
    assert_eq!(told(&http.get("/", &[BOB])?), ("alice/web".into(), get("baggage: okteto-divert=bob\r\n")));
    assert_eq!(told(&http.get("/", &[])?).1, get(""));
    let dev = town.town.lab.pod("alice/dev");
    assert_eq!(is_captured(http.stream(), &dev)?, Some(false), "it goes direct");
    assert_eq!(is_captured(town.web("alice/dev")?.stream(), &dev)?, Some(true));
    Ok(())
}

#[test]
fn a_change_applies_from_the_next_request_on() -> Result<()> {
    let town = Town::new(true)?;
    let mut http = town.web("alice/dev")?;
    assert_eq!(told(&http.get("/", &[])?).0, "alice/web");
    let mut none = manifest::divert("alice", "staging");
    none["spec"]["inject"] = "None".into();
    town.town.manifests.put("alice", &[none])?;
    // On the connection that is open: it is not closed for that.
    wait::until("injection to end", || http.get("/", &[]).is_ok_and(|response| response.text() == get("")))?;
    assert_eq!(told(&http.get("/", &[])?).0, "staging/web");
    // The key is still hers to send.
    let (alice, head) = told(&http.get("/", &[("baggage", "okteto-divert=alice")])?);
    assert_eq!((alice.as_str(), head), ("alice/web", get("baggage: okteto-divert=alice\r\n")));
    // Nor is it for its beginning, on connections that were captured for her pods once or never.
    let mut for_everyone = town.web("alice/dev")?;
    assert_eq!(told(&for_everyone.get("/", &[])?), ("staging/web".into(), get("")));
    town.town.divert("alice")?;
    for http in [&mut http, &mut for_everyone] {
        wait::until("injection to begin again", || {
            http.get("/", &[]).is_ok_and(|response| told(&response).0 == "alice/web")
        })?;
    }
    Ok(())
}

#[test]
fn a_head_that_would_grow_too_long_is_refused_where_it_is_seen() -> Result<()> {
    let town = Town::new(true)?;
    let head = |length: usize| {
        let without = get("X: \r\n");
        without.replace("X: ", &format!("X: {}", "x".repeat(length - without.len())))
    };
    let member = "baggage: okteto-divert=alice\r\n".len();
    let longest = 128 * 1024;
    let mut http = town.web("alice/dev")?;
    http.send(head(longest - member).as_bytes())?;
    assert_eq!(http.response()?.body.len(), longest);
    http.send(head(longest - member + 1).as_bytes())?;
    let response = http.response()?;
    assert_eq!((response.status, response.header("x-divert-error").unwrap().as_str()), (431, "HeadTooLarge"));
    Ok(())
}

#[test]
fn debug_names_the_target_and_metrics_the_service_and_the_key() -> Result<()> {
    let town = Town::new(true)?;
    let debug = ("x-divert-debug", "1");
    let target = |http: &mut Http, fields: &[(&str, &str)]| -> Result<Option<String>> {
        Ok(http.get("/", fields)?.header("x-divert-target"))
    };
    let mut web = town.web("alice/dev")?;
    assert_eq!(target(&mut web, &[debug])?.unwrap(), "alice/web");
    assert_eq!(target(&mut web, &[])?, None);
    assert_eq!(target(&mut web, &[debug, ("baggage", "divert=carol")])?.unwrap(), "staging/web");
    let mut api = town.connect("alice/dev", town.api, Family::V4)?;
    assert_eq!(target(&mut api, &[debug])?.unwrap(), "staging/api");
    let mut plain = town.web("staging/client")?;
    assert_eq!(target(&mut plain, &[debug])?.unwrap(), "staging/web");

    let metrics = town.agent.get("/metrics")?.text();
    let value = |service: &str, key: &str, result: &str| {
        let series = format!(
            "divert_service_requests_total{{destination_namespace=\"staging\",destination_service=\"{service}\",key=\"{key}\",result=\"{result}\"}} "
        );
        metrics.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned)
    };
    assert_eq!(value("web", "alice", "diverted").as_deref(), Some("2"), "{metrics}");
    assert_eq!(value("api", "alice", "shared").as_deref(), Some("1"), "{metrics}");
    // No key, and one that a client made up.
    assert_eq!(value("web", "", "shared").as_deref(), Some("2"), "{metrics}");
    assert!(!metrics.contains("carol"));
    Ok(())
}

#[test]
fn a_service_of_hers_that_is_not_there_is_counted() -> Result<()> {
    let mut town = Town::new(true)?;
    // Third in the list.
    drop(town.servers.remove(2));
    let mut http = town.web("alice/dev")?;
    assert_eq!(http.get("/", &[])?.status, 502);
    let metrics = town.agent.get("/metrics")?.text();
    let series = "divert_service_requests_total{destination_namespace=\"staging\",destination_service=\"web\",key=\"alice\",result=\"unavailable\"} 1";
    assert!(metrics.contains(series), "{metrics}");
    Ok(())
}

#[test]
fn a_request_that_is_tried_once_more_keeps_its_key() -> Result<()> {
    let town = Town::new(false)?;
    let _shared = town.town.server().listen(PORT)?;
    let alices = town.town.lab.pod("alice/web").listen(PORT)?;
    let injected = get("baggage: okteto-divert=alice\r\n");
    let mut client = Peer::new(town.web("alice/dev")?.stream().try_clone()?);
    client.send(get(""));
    let mut alice = Peer::accept(&alices)?;
    alice.expect(&injected);
    alice.send(OK);
    client.expect(OK);
    // The kept connection ends at the second request, which another follows at once.
    client.send(get("") + &get("x: 2\r\n"));
    alice.expect(&injected);
    alice.reset();
    let mut alice = Peer::accept(&alices)?;
    alice.expect(&injected);
    alice.send(OK);
    client.expect(OK);
    alice.expect(get("x: 2\r\nbaggage: okteto-divert=alice\r\n"));
    alice.send(OK);
    client.expect(OK);
    assert_eq!(town.agent.metric("divert_requests_retried_total")?, 1.0);
    Ok(())
}
