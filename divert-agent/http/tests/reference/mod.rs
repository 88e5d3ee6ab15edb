//! What the crate is compared with: rules written down a second time, as plainly as can be, with no regard to
//! cost; and a caller that reads a stream in parts. Shared by the property tests and the fuzz targets.
#![allow(dead_code, reason = "each user takes what it needs")]

use divert_http::{
    Asked, BodyLength, BodyReader, HeadScan, KeyNames, Method, Request, Response, parse_request,
    parse_response,
};

/// The key by the letter of the rules, for the default names.
pub(crate) fn baggage_key(fields: &[(Vec<u8>, Vec<u8>)]) -> Option<String> {
    let values = |name: &str| -> Vec<Vec<u8>> {
        let named = fields.iter().filter(|(field, _)| field.to_ascii_lowercase() == name.as_bytes());
        named.map(|(_, value)| value.clone()).collect()
    };
    let joined = values("baggage").join(&b","[..]);
    let mut members = Vec::new();
    let mut start = 0;
    for end in (0..=joined.len()).filter(|end| joined.get(*end).is_none_or(|byte| *byte == b',')) {
        let member = trim(&joined[start..end]);
        if !member.is_empty() && members.len() < 180 && end <= 8192 {
            let text: Vec<u8> = member.iter().copied().take_while(|byte| *byte != b';').collect();
            let mut halves = text.splitn(2, |byte| *byte == b'=').map(trim);
            members.push((halves.next(), halves.next()));
        }
        start = end + 1;
    }
    for name in ["okteto-divert", "divert"] {
        let first =
            members.iter().find(|(key, value)| key.as_deref() == Some(name.as_bytes()) && value.is_some());
        if let Some((_, Some(value))) = first
            && !value.is_empty()
        {
            return Some(decode(value));
        }
    }
    let old = values("baggage.okteto-divert").first().map(|value| trim(value)).unwrap_or_default();
    (!old.is_empty()).then(|| String::from_utf8_lossy(&old).into_owned())
}

fn trim(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while matches!(bytes.last(), Some(b' ' | b'\t')) {
        bytes.pop();
    }
    while matches!(bytes.first(), Some(b' ' | b'\t')) {
        bytes.remove(0);
    }
    bytes
}

fn decode(value: &[u8]) -> String {
    let raw = String::from_utf8_lossy(value).into_owned();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < value.len() {
        if value[at] != b'%' {
            decoded.push(value[at]);
            at += 1;
            continue;
        }
        let digits = value.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit())) {
            Some(digits) => decoded.push(u8::from_str_radix(digits, 16).expect("two hexadecimal digits")),
            None => return raw,
        }
        at += 3;
    }
    String::from_utf8(decoded).unwrap_or(raw)
}

/// The length and the data of the chunked body that `bytes` begins with, when it is valid and whole.
pub(crate) fn decode_chunked(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (mut at, mut data) = (0, Vec::new());
    loop {
        let line = line_at(bytes, at)?;
        at += line.len() + 2;
        let digits: String =
            line.iter().map(|byte| char::from(*byte)).take_while(char::is_ascii_hexdigit).collect();
        let rest = trim(&line[digits.len()..]);
        if digits.is_empty() || !(rest.is_empty() || rest[0] == b';') {
            return None;
        }
        let size = match digits.trim_start_matches('0') {
            "" => 0,
            digits => usize::from_str_radix(digits, 16).ok().filter(|size| *size <= i64::MAX as usize)?,
        };
        if size == 0 {
            break;
        }
        data.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let line = line_at(bytes, at)?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some((at, data));
        }
    }
}

/// The line that begins at `at`, without its CRLF, if it has no control character.
fn line_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    let line = &rest[..rest.windows(2).position(|pair| pair == b"\r\n")?];
    line.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control()).then_some(line)
}

/// Where the parts end in which `len` bytes arrive: some random cut, the same for the same seed.
pub(crate) fn parts(len: usize, seed: u64) -> Vec<usize> {
    let mut random = seed | 1;
    let mut ends: Vec<usize> = Vec::new();
    while ends.last().is_none_or(|end| *end < len) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Mostly a byte or two, at times a piece.
        let step =
            if random.is_multiple_of(5) { (random >> 8) as usize % 64 } else { (random >> 8) as usize % 3 };
        ends.push((ends.last().unwrap_or(&0) + step).min(len));
    }
    ends
}

/// A seed for [`parts`] out of the bytes themselves (FNV-1a).
pub(crate) fn seed_of(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// What is found in a stream of requests, which arrives in parts that end at `ends`.
pub(crate) fn follow_requests(stream: &[u8], ends: &[usize]) -> Vec<String> {
    let names = KeyNames::default();
    follow(stream, ends, |buf, scan| match parse_request(buf, scan, &names) {
        Request::Partial => Step::Partial,
        Request::Head(head) => Step::Head(head.len, head.body, format!("{head:?}")),
        stop => Step::Stop(format!("{stop:?}")),
    })
}

/// What is found in a stream of responses to requests like this one.
pub(crate) fn follow_responses(stream: &[u8], ends: &[usize], asked: &Asked<'_>) -> Vec<String> {
    follow(stream, ends, |buf, scan| match parse_response(buf, scan, asked) {
        Response::Partial => Step::Partial,
        Response::Head(head) => Step::Head(head.len, head.body, format!("{head:?}")),
        stop => Step::Stop(format!("{stop:?}")),
    })
}

enum Step {
    Partial,
    Head(usize, BodyLength, String),
    Stop(String),
}

/// Reads a stream as the splicer does: heads from the buffer, data of bodies at times unseen.
fn follow(stream: &[u8], ends: &[usize], mut head: impl FnMut(&[u8], &mut HeadScan) -> Step) -> Vec<String> {
    let mut found = Vec::new();
    let mut scan = HeadScan::new();
    let mut body: Option<(BodyReader, usize)> = None;
    let mut at = 0;
    for (turn, end) in ends.iter().enumerate() {
        loop {
            let buf = &stream[at..*end];
            let Some((reader, taken)) = &mut body else {
                match head(buf, &mut scan) {
                    Step::Partial => break,
                    Step::Head(len, length, text) => {
                        at += len;
                        found.push(text);
                        body = Some((BodyReader::new(length), 0));
                    }
                    Step::Stop(text) => {
                        found.push(text);
                        return found;
                    }
                }
                continue;
            };
            if turn % 2 == 1 {
                let unseen = reader.bulk_remaining().min(buf.len() as u64);
                reader.skip_bulk(unseen);
                *taken += unseen as usize;
                at += unseen as usize;
            }
            match reader.advance(&stream[at..*end]) {
                Ok(advance) => {
                    at += advance.consumed;
                    *taken += advance.consumed;
                    assert!(advance.done || at == *end, "all bytes belong to a body that is not done");
                }
                Err(error) => {
                    found.push(format!("{error:?}"));
                    return found;
                }
            }
            if !reader.is_done() {
                break;
            }
            found.push(format!("body of {taken}"));
            body = None;
        }
    }
    found.push(format!(
        "at {at}, in a body: {:?}",
        body.map(|(reader, taken)| (reader.bulk_remaining(), taken))
    ));
    found
}

/// Requests whose responses are read differently.
pub(crate) fn kinds_of_requests() -> [Asked<'static>; 5] {
    let of = |method, version, offered| Asked { method, version, offered };
    [
        of(Method::Other, 1, b""),
        of(Method::Other, 1, b"x,websocket"),
        of(Method::Other, 0, b""),
        of(Method::Head, 1, b""),
        of(Method::Connect, 1, b""),
    ]
}
