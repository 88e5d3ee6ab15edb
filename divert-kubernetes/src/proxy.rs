//! Which proxy leads to the API server, if any: decided as kubectl does. Pure.
//!
//! `proxy-url` of the kubeconfig is used whatever the environment says. Without it HTTPS_PROXY counts, but not for what
//! NO_PROXY names, nor for this machine itself. The rules of NO_PROXY are those of Go's package
//! golang.org/x/net/http/httpproxy, which kubectl uses: other programs read the same variable in other ways (to curl
//! `.example.com` means example.com as well, and no port may follow a host), and so do the crates that there are.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use ipnet::IpNet;

/// What the environment says of proxies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Environment {
    https: Option<(&'static str, String)>,
    http: Option<(&'static str, String)>,
    no: String,
}

/// A proxy that is to be used.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    /// How it is spoken to.
    pub(super) protocol: Protocol,
    /// Where it is, and what it wants to know of who comes.
    pub(super) at: Intercept,
    from: &'static str,
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// By CONNECT.
    Http,
    /// By CONNECT, over TLS.
    Https,
    /// Version 5; names are resolved by the proxy.
    Socks,
}

/// A proxy that cannot be used, as it is not understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    /// Who names it.
    pub(super) from: &'static str,
}

impl fmt::Display for Proxy {
    /// Without the password that its URL may have.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (of {})", self.at.uri().to_string().trim_end_matches('/'), self.from)
    }
}

impl Environment {
    /// That of this process.
    pub(super) fn read() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| Some((name, variable(name).filter(|it| !it.is_empty())?)))
        };
        Self {
            https: first(["HTTPS_PROXY", "https_proxy"]),
            http: first(["HTTP_PROXY", "http_proxy"]),
            no: first(["NO_PROXY", "no_proxy"]).map(|(_, list)| list).unwrap_or_default(),
        }
    }

    /// The proxy for an API server, of whose cluster the kubeconfig may have a `proxy-url`.
    pub(super) fn proxy(&self, server: &Uri, proxy_url: Option<&str>) -> Result<Option<Proxy>, Refused> {
        if let Some(url) = proxy_url.filter(|url| !url.is_empty()) {
            return parse(url, "proxy-url in the kubeconfig", server).map(Some);
        }
        let configured = if server.scheme_str() == Some("http") { &self.http } else { &self.https };
        match configured {
            Some((name, url)) if !is_excepted(server, &self.no) => parse(url, name, server).map(Some),
            _ => Ok(None),
        }
    }
}

fn parse(url: &str, from: &'static str, server: &Uri) -> Result<Proxy, Refused> {
    let refused = || Refused { from };
    let socks = url.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("socks5"));
    // Else the one of HTTP would be taken.
    let with_port;
    let url = match url.parse::<Uri>() {
        Ok(uri) if socks && uri.port().is_none() => {
            with_port = format!("{}:1080", url.trim_end_matches('/'));
            &with_port
        }
        _ => url,
    };
    let at = Matcher::builder().all(url).build().intercept(server).ok_or_else(refused)?;
    let protocol = match at.uri().scheme_str() {
        Some("http") => Protocol::Http,
        Some("https") => Protocol::Https,
        Some("socks5" | "socks5h") => Protocol::Socks,
        _ => return Err(refused()),
    };
    Ok(Proxy { protocol, at, from })
}

/// Whether a server is reached without the proxy of the environment: this machine always, others as a list says.
fn is_excepted(server: &Uri, list: &str) -> bool {
    let host = server.host().unwrap_or_default().to_ascii_lowercase();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
    let default = if server.scheme_str() == Some("http") { 80 } else { 443 };
    let port = server.port_u16().unwrap_or(default);
    let address = host.parse::<IpAddr>().ok();
    if host == "localhost" || address.is_some_and(|address| address.to_canonical().is_loopback()) {
        return true;
    }
    list.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .any(|entry| entry == "*" || matches_entry(&entry.to_ascii_lowercase(), host, address, port))
}

/// One entry: a CIDR, an address, a host with the names below it, or after a dot (`.` or `*.`) those alone. A port may
/// follow all but the first.
fn matches_entry(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if let Ok(range) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| range.contains(&address.to_canonical()));
    }
    let (name, only) = split_port(entry);
    if only.is_some_and(|only| only.parse() != Ok(port)) {
        return false;
    }
    if let Ok(excepted) = name.parse::<IpAddr>() {
        return address.is_some_and(|address| address.to_canonical() == excepted.to_canonical());
    }
    let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
    match name.strip_prefix('.') {
        Some(domain) => !domain.is_empty() && host.ends_with(name),
        None => {
            !name.is_empty()
                && (host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
        }
    }
}

/// A host and its port, if it has one. An address of IPv6 has brackets then.
fn split_port(entry: &str) -> (&str, Option<&str>) {
    if let Some(rest) = entry.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => (entry, None),
        };
    }
    match entry.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (entry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::from(|name| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn chosen(variables: &[(&str, &str)], server: &str, proxy_url: Option<&str>) -> String {
        match environment(variables).proxy(&server.parse().unwrap(), proxy_url) {
            Ok(Some(proxy)) => proxy.to_string(),
            Ok(None) => "direct".to_owned(),
            Err(Refused { from }) => format!("refused: {from}"),
        }
    }

    /// After UseProxyTests of golang.org/x/net/http/httpproxy, and the rules in its documentation.
    #[test]
    fn no_proxy_means_what_it_means_to_kubectl() {
        let list = "example.com, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, 2001:db8::52:0:1, \
                    [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64, *.wild.net, .sub.org:443, \
                    x.only:8443, ,";
        for (server, excepted) in [
            ("https://localhost", true),
            ("https://127.0.0.1", true),
            ("https://127.0.0.2:6443", true),
            ("https://[::1]", true),
            ("https://[::2]", false),
            ("https://192.168.1.1", true),
            ("https://192.168.1.2:81", true),
            ("https://192.168.1.2", false),
            ("https://192.168.1.3:80", true),
            ("https://192.168.1.3", false),
            ("https://192.168.1.4", false),
            ("https://10.0.0.2", true),
            ("https://10.0.0.4", false),
            ("https://[2001:db8::52:0:1]", true),
            ("https://[2001:db8::52:0:2]", true),
            ("https://[2001:db8::52:0:2]:8443", false),
            ("https://[2001:db8::52:0:3]", false),
            ("https://[2002:db8:a::123]", true),
            ("https://[fe80::424b:c8be:1643:a1b6]", false),
            ("https://www.example.com", true),
            ("https://EXAMPLE.com:6443", true),
            ("https://myexample.com", false),
            ("https://example.com.org", false),
            ("https://api.wild.net", true),
            ("https://wild.net", false),
            ("https://api.sub.org", true),
            ("https://api.sub.org:6443", false),
            ("https://sub.org", false),
            ("https://x.only:8443", true),
            ("https://a.x.only:8443", true),
            ("https://x.only", false),
        ] {
            assert_eq!(is_excepted(&server.parse().unwrap(), list), excepted, "{server}");
        }
        let server = "https://api.example.net".parse().unwrap();
        assert!(is_excepted(&server, "other, *"));
        for list in ["", " ", ",", "*.", ".", "*.net.", "**", "https://api.example.net"] {
            assert!(!is_excepted(&server, list), "{list:?}");
        }
    }

    #[test]
    fn the_kubeconfig_comes_before_the_environment_and_capitals_before_small_letters() {
        let server = "https://api.example.com:6443";
        let variables = [("HTTPS_PROXY", "http://one:3128"), ("https_proxy", "http://two:3128")];
        assert_eq!(chosen(&[], server, None), "direct");
        assert_eq!(chosen(&variables, server, None), "http://one:3128 (of HTTPS_PROXY)");
        assert_eq!(chosen(&variables[1..], server, None), "http://two:3128 (of https_proxy)");
        assert_eq!(
            chosen(&[("HTTPS_PROXY", ""), variables[1]], server, None),
            "http://two:3128 (of https_proxy)"
        );
        let excepted = [variables[0], ("no_proxy", "example.com")];
        assert_eq!(chosen(&excepted, server, None), "direct");
        let own = chosen(&excepted, server, Some("socks5://three:1080"));
        assert_eq!(own, "socks5://three:1080 (of proxy-url in the kubeconfig)");
        // HTTP_PROXY is for servers without TLS.
        assert_eq!(chosen(&[("HTTP_PROXY", "http://one")], server, None), "direct");
        assert_eq!(chosen(&variables, "http://api.example.com", None), "direct");
    }

    #[test]
    fn proxies_are_understood_or_refused_and_passwords_not_told() {
        let server = "https://api.example.com";
        for (url, expected) in [
            ("one:3128", "http://one:3128"),
            ("10.0.0.1:3128", "http://10.0.0.1:3128"),
            ("http://user:secret@one:3128/", "http://one:3128"),
            ("https://one", "https://one"),
            ("socks5://user:secret@one", "socks5://one:1080"),
            ("socks5h://one:99", "socks5h://one:99"),
        ] {
            let told = chosen(&[("HTTPS_PROXY", url)], server, None);
            assert_eq!(told, format!("{expected} (of HTTPS_PROXY)"), "{url}");
        }
        for url in ["ftp://one", "socks4://one", "http://", "not a URL"] {
            assert_eq!(chosen(&[("HTTPS_PROXY", url)], server, None), "refused: HTTPS_PROXY", "{url}");
        }
    }
}
