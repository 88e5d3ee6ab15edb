//! Header blocks and other frames as a test asks for them: decoded, in the order they came.

use super::frame::Frame;

/// A header field, as text.
pub type Field = (String, String);

/// A header block, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The stream it belongs to.
    pub stream: u32,
    /// In the order they came, pseudo-header fields included.
    pub fields: Vec<Field>,
    /// Names of those that must not be indexed by anybody (RFC 7541 7.1.3).
    pub never_indexed: Vec<String>,
    /// It ends the stream.
    pub end: bool,
    /// Frames it came in.
    pub frames: usize,
    /// Its length on the wire, without frame headers.
    pub length: usize,
}

impl Head {
    /// The first field of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// All fields of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// `:status`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn status(&self) -> &str {
        let status = self.get(":status");
        status.unwrap_or_else(|| panic!("not the head of a response: {self:?}"))
    }
}

/// What comes over a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// HEADERS with its CONTINUATIONs.
    Head(Head),
    /// Another frame, but for WINDOW_UPDATE and the acknowledgement of SETTINGS.
    Frame(Frame),
}

impl Event {
    /// Of which stream it is; 0 is the connection.
    pub fn stream(&self) -> u32 {
        match self {
            Self::Head(head) => head.stream,
            Self::Frame(frame) => frame.stream,
        }
    }
}

/// How fields are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// As most clients do: found in the tables, else inserted into them, and coded by Huffman's code.
    Indexed,
    /// Literals without indexing.
    Plain,
    /// Literals that must never be indexed.
    Never,
}

/// The fields of a request for `/` at `web`: GET where it ends with its head, else POST.
pub fn request<'a>(fields: &[(&'a str, &'a str)], end: bool) -> Vec<(&'a str, &'a str)> {
    let method = if end { "GET" } else { "POST" };
    let pseudo = [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "web")];
    [&pseudo, fields].concat()
}

/// Fields as a [`Head`] has them.
pub fn owned(fields: &[(&str, &str)]) -> Vec<Field> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
