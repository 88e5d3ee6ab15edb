use super::*;

const DONE: fn(usize) -> Result<Advance, ChunkError> = |consumed| Ok(Advance { consumed, done: true });
const MORE: fn(usize) -> Result<Advance, ChunkError> = |consumed| Ok(Advance { consumed, done: false });

/// What becomes of a chunked body in one piece; byte by byte must say the same.
#[track_caller]
fn chunked(bytes: &[u8]) -> Result<Advance, ChunkError> {
    let whole = BodyReader::new(BodyLength::Chunked).advance(bytes);
    let mut reader = BodyReader::new(BodyLength::Chunked);
    let mut consumed = 0;
    let single = bytes.iter().try_fold(MORE(0), |_, byte| {
        let advance = reader.advance(&[*byte])?;
        consumed += advance.consumed;
        Ok(Ok(Advance { consumed, done: advance.done }))
    });
    assert_eq!(whole, single.and_then(|advance| advance), "{}", bytes.escape_ascii());
    whole
}

#[test]
fn no_body_is_done_at_once() {
    for length in [BodyLength::None, BodyLength::Length(0)] {
        let mut reader = BodyReader::new(length);
        assert!(reader.is_done());
        assert_eq!(reader.advance(b"GET"), DONE(0));
    }
}

#[test]
fn a_length_ends_where_it_says() {
    let mut reader = BodyReader::new(BodyLength::Length(5));
    assert_eq!(reader.advance(b"he"), MORE(2));
    assert_eq!(reader.bulk_remaining(), 3);
    assert!(!reader.may_close());
    assert_eq!(reader.advance(b"lloGET"), DONE(3));
    assert!(reader.may_close());
}

#[test]
fn until_close_never_ends() {
    let mut reader = BodyReader::new(BodyLength::UntilClose);
    assert_eq!(reader.bulk_remaining(), u64::MAX);
    assert_eq!(reader.advance(b"hello"), MORE(5));
    reader.skip_bulk(1 << 40);
    assert_eq!(reader.bulk_remaining(), u64::MAX);
    assert!(reader.may_close() && !reader.is_done());
}

#[test]
fn chunks_end_with_the_last_one() {
    let body = b"5\r\nhello\r\n0A\r\n0123\r\n\r\n45\r\n0\r\n\r\n";
    assert_eq!(chunked(body), DONE(body.len()));
    assert_eq!(chunked(&[body, &b"GET / HTTP/1.1"[..]].concat()), DONE(body.len()));
    assert_eq!(chunked(&body[..body.len() - 1]), MORE(body.len() - 1));
}

#[test]
fn extensions_and_trailers_are_passed_over() {
    for body in [
        &b"5;a=b;c=\"d e\"\r\nhello\r\n0;x\r\n\r\n"[..],
        b"5 ; a\r\nhello\r\n0\r\n\r\n",
        b"5  \r\nhello\r\n0\t\r\n\r\n",
        b"0\r\nX-Sum: 5\r\nY:\t\xff\r\n\r\n",
        b"000\r\n\r\n",
        b"5;\r\nhello\r\n00;\r\n\r\n",
    ] {
        assert_eq!(chunked(body), DONE(body.len()), "{}", body.escape_ascii());
    }
}

#[test]
fn oddities_of_a_size() {
    use ChunkError::*;
    let cases: &[(&[u8], ChunkError)] = &[
        (b"\r\n", InvalidSize),
        (b";a\r\n", InvalidSize),
        (b" 5\r\nhello", InvalidSize),
        (b"0x5\r\n", InvalidSize),
        (b"+5\r\n", InvalidSize),
        (b"-1\r\n", InvalidSize),
        (b"5g\r\n", InvalidSize),
        (b"5 5\r\n", InvalidSize),
        (b"5\0\r\n", InvalidSize),
        (b"5_0\r\n", InvalidSize),
        (b"\xef\xbc\x95\r\n", InvalidSize),
        (b"8000000000000000\r\n", SizeOverflow),
        (b"10000000000000005\r\n", SizeOverflow),
        (b"ffffffffffffffff\r\n", SizeOverflow),
    ];
    for (body, error) in cases {
        assert_eq!(chunked(body), Err(*error), "{}", body.escape_ascii());
    }
    assert_eq!(chunked(b"7fffffffffffffff\r\nx"), MORE(19));
    assert_eq!(chunked(b"00000000000000000000005\r\nhello"), MORE(30));
}

#[test]
fn lines_end_in_crlf() {
    use ChunkError::*;
    let cases: &[(&[u8], ChunkError)] = &[
        (b"5\nhello", InvalidSize),
        (b"5 \nhello", InvalidSize),
        (b"5;a\nhello", ControlByte),
        (b"5;a\0\r\nhello", ControlByte),
        (b"5\rhello", LoneCr),
        (b"5;a\rb\r\nhello", LoneCr),
        (b"5;a\r\r\nhello", LoneCr),
        (b"0\r\na: b\n\r\n", ControlByte),
        (b"0\r\na: b\rc\r\n\r\n", LoneCr),
        (b"0\r\n\n", ControlByte),
        (b"0\r\n\rx", LoneCr),
        (b"0\r\n\0", ControlByte),
    ];
    for (body, error) in cases {
        assert_eq!(chunked(body), Err(*error), "{}", body.escape_ascii());
    }
}

#[test]
fn data_ends_in_crlf_where_its_size_says() {
    for body in [
        &b"5\r\nhelloX\r\n"[..],
        b"5\r\nhello\n",
        b"5\r\nhello\rX",
        b"5\r\nhello0\r\n\r\n",
        b"4\r\nhello\r\n",
    ] {
        assert_eq!(chunked(body), Err(ChunkError::MissingDataEnd), "{}", body.escape_ascii());
    }
}

#[test]
fn an_error_stays() {
    let mut reader = BodyReader::new(BodyLength::Chunked);
    assert_eq!(reader.advance(b"5\r\nhello\r\nx"), Err(ChunkError::InvalidSize));
    assert_eq!(reader.advance(b"5\r\nhello\r\n"), Err(ChunkError::InvalidSize));
    assert_eq!(reader.bulk_remaining(), 0);
    assert!(!reader.is_done() && !reader.may_close());
}

#[test]
fn a_size_line_has_a_bound() {
    let line = |len: usize, byte: char| format!("5;{}", byte.to_string().repeat(len - 2)).into_bytes();
    assert_eq!(chunked(&line(MAX_SIZE_LINE, 'x')), MORE(MAX_SIZE_LINE));
    assert_eq!(chunked(&line(MAX_SIZE_LINE + 1, 'x')), Err(ChunkError::SizeLineTooLong));
    assert_eq!(chunked(&[b'0'; MAX_SIZE_LINE + 1]), Err(ChunkError::SizeLineTooLong));
    assert_eq!(chunked(format!("5{:1$}", "", MAX_SIZE_LINE).as_bytes()), Err(ChunkError::SizeLineTooLong));
    // The bound is on a line, not on all of them.
    let chunk = [&line(MAX_SIZE_LINE, 'x')[..], b"\r\nhello\r\n"].concat();
    assert_eq!(chunked(&chunk.repeat(3)), MORE(3 * chunk.len()));
}

#[test]
fn trailers_have_a_bound_together() {
    let field = [&b"a: "[..], &[b'x'; 1024 - 5], b"\r\n"].concat();
    let fields = [&b"0\r\n"[..], &field.repeat(MAX_TRAILERS / 1024)].concat();
    assert_eq!(chunked(&[&fields[..], b"\r\n"].concat()), DONE(fields.len() + 2));
    assert_eq!(chunked(&[&fields[..], b"a"].concat()), Err(ChunkError::TrailersTooLong));
}

#[test]
fn bulk_is_the_data_of_the_present_chunk() {
    let mut reader = BodyReader::new(BodyLength::Chunked);
    assert_eq!(reader.bulk_remaining(), 0);
    assert_eq!(reader.advance(b"186a0\r\nxx"), MORE(9));
    assert_eq!(reader.bulk_remaining(), 99_998);
    reader.skip_bulk(99_997);
    assert_eq!(reader.bulk_remaining(), 1);
    reader.skip_bulk(1);
    assert_eq!(reader.bulk_remaining(), 0);
    assert_eq!(reader.advance(b"\r\n0\r\n\r\nrest"), DONE(7));
}

#[test]
fn bulk_can_be_all_of_a_length() {
    let mut reader = BodyReader::new(BodyLength::Length(1 << 40));
    reader.skip_bulk(0);
    reader.skip_bulk((1 << 40) - 1);
    assert!(!reader.is_done());
    reader.skip_bulk(1);
    assert!(reader.is_done());
}
