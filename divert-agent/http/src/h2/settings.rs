//! SETTINGS (RFC 9113 6.5), in so far as somebody between the peers needs them.

use super::frame::code;

/// SETTINGS_HEADER_TABLE_SIZE.
pub const HEADER_TABLE_SIZE: u16 = 1;
/// SETTINGS_ENABLE_PUSH.
pub const ENABLE_PUSH: u16 = 2;
/// SETTINGS_MAX_CONCURRENT_STREAMS.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// SETTINGS_MAX_FRAME_SIZE.
pub const MAX_FRAME_SIZE: u16 = 5;
/// SETTINGS_MAX_HEADER_LIST_SIZE.
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 3).
pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;

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
    /// Largest payload of a frame that the sender takes.
    pub max_frame_size: Option<u32>,
    /// Longest header list that the sender takes.
    pub max_header_list_size: Option<u32>,
    /// 1 where the sender takes extended CONNECT.
    pub enable_connect_protocol: Option<u32>,
}

impl Settings {
    /// Reads a payload.
    ///
    /// # Errors
    /// The code of the connection error that it is where it is none (RFC 9113 6.5, 6.5.2).
    pub fn read(payload: &[u8]) -> Result<Self, u32> {
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(code::FRAME_SIZE_ERROR);
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
                ENABLE_PUSH if value > 1 => return Err(code::PROTOCOL_ERROR),
                INITIAL_WINDOW_SIZE if value > 0x7fff_ffff => return Err(code::FLOW_CONTROL_ERROR),
                MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => return Err(code::PROTOCOL_ERROR),
                MAX_FRAME_SIZE => read.max_frame_size = Some(value),
                INITIAL_WINDOW_SIZE => read.initial_window_size = Some(value),
                MAX_HEADER_LIST_SIZE => read.max_header_list_size = Some(value),
                ENABLE_CONNECT_PROTOCOL if value > 1 => return Err(code::PROTOCOL_ERROR),
                ENABLE_CONNECT_PROTOCOL => read.enable_connect_protocol = Some(value),
                _ => {}
            }
        }
        Ok(read)
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
        assert_eq!(Settings::read(&payload[..7]), Err(code::FRAME_SIZE_ERROR));
        for (id, value, error) in [
            (INITIAL_WINDOW_SIZE, 1 << 31, code::FLOW_CONTROL_ERROR),
            (ENABLE_PUSH, 2, code::PROTOCOL_ERROR),
            (MAX_FRAME_SIZE, 16_383, code::PROTOCOL_ERROR),
            (MAX_FRAME_SIZE, 1 << 24, code::PROTOCOL_ERROR),
        ] {
            let mut payload = Vec::new();
            put(&mut payload, id, value);
            assert_eq!(Settings::read(&payload), Err(error));
        }
    }
}
