//! The fields of one header block, in one piece of memory that is used again for the next.

use std::borrow::Cow;
use std::ops::Range;

use crate::baggage::{KeyNames, find_key};
use crate::head::{MAX_FIELDS, MAX_HEAD};
use crate::inject;
use crate::request::is_idempotent;

/// The fields of a decoded header block.
#[derive(Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    list: Vec<Field>,
    too_large: bool,
    size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    name: usize,
    value: usize,
    end: usize,
    sensitive: bool,
}

/// What of a request decides where it goes, and how it is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestView<'a> {
    /// The key that it carries; never empty.
    pub key: Option<Cow<'a, str>>,
    /// :authority, else host.
    pub host: Option<&'a str>,
    /// `x-divert-debug: 1`.
    pub debug: bool,
}

impl Fields {
    /// Forgets all fields.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.list.clear();
        self.too_large = false;
        self.size = 0;
    }

    /// Forgets all fields, and gives back the memory of a large head, which must not cost an idle connection its size.
    pub fn release(&mut self) {
        self.clear();
        self.bytes.shrink_to(KEPT);
        self.list.shrink_to(KEPT / size_of::<Field>());
    }

    /// Name, value, and whether it must never be put into a table (RFC 7541 7.1.3), in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> + Clone {
        self.list.iter().map(|field| {
            (&self.bytes[field.name..field.value], &self.bytes[field.value..field.end], field.sensitive)
        })
    }

    /// The block held more than is read of a head: fields are missing here.
    pub fn too_large(&self) -> bool {
        self.too_large
    }

    /// Length of the fields, counted as HTTP/1 would write them.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The value of the first field of this name, which is in lower case as all names are.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(field, ..)| *field == name).map(|(_, value, _)| value)
    }

    /// Appends a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let open = self.open();
        self.bytes.extend_from_slice(name);
        let split = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.close(open, split, false);
    }

    /// Where the next field begins.
    pub(crate) fn open(&self) -> usize {
        self.bytes.len()
    }

    /// The memory that a field is written to, behind [`Self::open`].
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What was written at a place.
    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Ends the field that began at `name` and whose value began at `value`.
    pub(crate) fn close(&mut self, name: usize, value: usize, sensitive: bool) {
        let end = self.bytes.len();
        self.size += end - name + ": \r\n".len();
        if self.size > MAX_HEAD || self.list.len() >= MAX_FIELDS {
            self.too_large = true;
        }
        if self.too_large {
            self.bytes.truncate(name);
        } else {
            self.list.push(Field { name, value, end, sensitive });
        }
    }

    /// Reads what decides.
    pub fn request<'a>(&'a self, names: &KeyNames) -> RequestView<'a> {
        let (mut host, mut authority, mut debug, mut carrier) = (None, None, false, false);
        for (name, value, _) in self.iter() {
            match name.len() {
                4 if name == b"host" => host = host.or(Some(value)),
                10 if name == b":authority" => authority = Some(value),
                14 if name == b"x-divert-debug" => debug |= value == b"1",
                _ => carrier |= names.is_carrier(name),
            }
        }
        let fields = self.iter().map(|(name, value, _)| (name, value));
        let key = if carrier { find_key(names, fields) } else { None };
        let host = authority.filter(|it| !it.is_empty()).or(host).and_then(|host| str::from_utf8(host).ok());
        RequestView { key, host: host.filter(|host| !host.is_empty()), debug }
    }

    /// Whether it is a call of gRPC, whose errors are statuses of its own.
    pub fn is_grpc(&self) -> bool {
        self.get(b"content-type").is_some_and(|value| value.starts_with(b"application/grpc"))
    }

    /// Whether the request is HEAD: its response has no body.
    pub fn is_head(&self) -> bool {
        self.get(b":method") == Some(b"HEAD")
    }

    /// Whether the request is an extended CONNECT (RFC 8441 4), as WebSockets over HTTP/2 begin with.
    pub fn is_extended_connect(&self) -> bool {
        self.get(b":protocol").is_some()
    }

    /// Whether the request may be sent twice.
    pub fn is_idempotent(&self) -> bool {
        self.get(b":method").is_some_and(is_idempotent)
    }

    /// Adds a key, as [`inject_key`](crate::inject_key) does to a head of HTTP/1. Where no field was changed, but
    /// one was added, it is the last one.
    pub fn inject(&mut self, names: &KeyNames, key: &str) -> Injected {
        let fields = self.list.iter().map(|field| {
            let value = &self.bytes[field.value..field.end];
            let leading = value.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
            (field.value + leading, &self.bytes[field.name..field.value], &value[leading..])
        });
        let insertion = inject::insertion(fields, names);
        let mut text = Vec::with_capacity(key.len() + 32);
        text.extend_from_slice(insertion.before.as_bytes());
        inject::push_key(&mut text, names, key);
        text.extend_from_slice(insertion.after.as_bytes());
        let Some(at) = insertion.at else {
            let name = insertion.field.to_ascii_lowercase();
            self.push(name.as_bytes(), &text);
            return Injected::Appended;
        };
        let len = text.len();
        self.bytes.splice(at..at, text);
        let mut moved = false;
        for field in &mut self.list {
            if moved {
                field.name += len;
                field.value += len;
                field.end += len;
            } else if field.value <= at && at <= field.end && field.value > field.name {
                field.end += len;
                moved = true;
            }
        }
        self.size += len;
        self.too_large |= self.size > MAX_HEAD;
        Injected::Changed
    }

    /// The last field.
    pub fn last(&self) -> Option<(&[u8], &[u8], bool)> {
        let field = self.list.last()?;
        Some((&self.bytes[field.name..field.value], &self.bytes[field.value..field.end], field.sensitive))
    }
}

/// Memory that is kept for the next block, in bytes.
const KEPT: usize = 1024;

/// What an injection did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Injected {
    /// A field at the end; all others are as they were.
    Appended,
    /// A field has another value.
    Changed,
}
