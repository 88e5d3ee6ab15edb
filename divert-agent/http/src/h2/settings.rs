//! SETTINGS (RFC 9113 6.5), in so far as somebody between the peers needs them.

/// SETTINGS_HEADER_TABLE_SIZE.
pub const HEADER_TABLE_SIZE: u16 = 1;
/// SETTINGS_ENABLE_PUSH.
pub const ENABLE_PUSH: u16 = 2;
/// SETTINGS_MAX_CONCURRENT_STREAMS.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// SETTINGS_MAX_HEADER_LIST_SIZE.
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// What a window is before anybody says otherwise.
pub const DEFAULT_WINDOW: u32 = 65_535;
/// What a table is before anybody says otherwise.
pub const DEFAULT_TABLE: u32 = 4096;

/// The settings of one SETTINGS frame that matter here; the last of a kind counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// The last, and the smallest, where there are several.
    pub header_table_size: Option<(u32, u32)>,
    /// Streams that the sender lets the other side open.
    pub max_concurrent_streams: Option<u32>,
    /// Credit of new streams.
    pub initial_window_size: Option<u32>,
    /// Longest header list that the sender takes.
    pub max_header_list_size: Option<u32>,
}

impl Settings {
    /// Reads a payload; `None` where it is none (RFC 9113 6.5, 6.5.2).
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return None;
        }
        let mut read = Self::default();
        for [a, b, value @ ..] in settings {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*a, *b]) {
                HEADER_TABLE_SIZE => {
                    let least = read.header_table_size.map_or(value, |(_, least)| least.min(value));
                    read.header_table_size = Some((value, least));
                }
                MAX_CONCURRENT_STREAMS => read.max_concurrent_streams = Some(value),
                INITIAL_WINDOW_SIZE if value > 0x7fff_ffff => return None,
                INITIAL_WINDOW_SIZE => read.initial_window_size = Some(value),
                MAX_HEADER_LIST_SIZE => read.max_header_list_size = Some(value),
                _ => {}
            }
        }
        Some(read)
    }
}

/// Appends one setting to a payload.
pub(crate) fn put(out: &mut Vec<u8>, id: u16, value: u32) {
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_kind_counts_and_the_smallest_table_is_remembered() {
        let mut payload = Vec::new();
        for (id, value) in [(HEADER_TABLE_SIZE, 10), (4, 7), (HEADER_TABLE_SIZE, 99), (0xff, 1), (4, 8)] {
            put(&mut payload, id, value);
        }
        let read = Settings::read(&payload).unwrap();
        assert_eq!(read.header_table_size, Some((99, 10)));
        assert_eq!(read.initial_window_size, Some(8));
        assert_eq!(read.max_concurrent_streams, None);
        assert_eq!(Settings::read(&payload[..7]), None);
        let mut payload = Vec::new();
        put(&mut payload, INITIAL_WINDOW_SIZE, 1 << 31);
        assert_eq!(Settings::read(&payload), None);
    }
}
