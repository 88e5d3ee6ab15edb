use super::*;
use crate::h2::fields::Fields;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String, bool)>, HpackError> {
    let mut fields = Fields::default();
    decoder.decode(block, &mut fields)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ok(fields.iter().map(|(name, value, sensitive)| (text(name), text(value), sensitive)).collect())
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn list(fields: &[(&str, &str)]) -> Vec<(String, String, bool)> {
    fields.iter().map(|(name, value)| ((*name).into(), (*value).into(), false)).collect()
}

/// RFC 7541 C.4: Huffman coding, and a table that grows.
#[test]
fn the_examples_of_the_standard_are_read() {
    let mut decoder = Decoder::default();
    let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
    let block = hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
    assert_eq!(decode(&mut decoder, &block).unwrap(), list(&first));
    let second = [&first[..], &[("cache-control", "no-cache")]].concat();
    assert_eq!(decode(&mut decoder, &hex("8286 84be 5886 a8eb 1064 9cbf")).unwrap(), list(&second));
    let third = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ];
    let block = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
    assert_eq!(decode(&mut decoder, &block).unwrap(), list(&third));
}

/// RFC 7541 C.5: entries leave a table of 256 bytes.
#[test]
fn entries_are_evicted() {
    let mut decoder = Decoder::default();
    let mut block = Vec::new();
    encode::size_update(&mut block, 256);
    block.extend(hex(
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120
         474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
    ));
    decode(&mut decoder, &block).unwrap();
    let second = decode(&mut decoder, &hex("4803 3330 37c1 c0bf")).unwrap();
    assert_eq!(second[0].1, "307");
    assert_eq!(second[1].1, "private");
    assert_eq!(second[3].1, "https://www.example.com");
    // 65 was the oldest, and has left.
    assert_eq!(decode(&mut decoder, &[0x80 | 66]), Err(HpackError::Index(66)));
}

#[test]
fn what_is_cut_short_or_too_large_is_an_error_and_never_a_panic() {
    for (block, error) in [
        (&[0xff][..], HpackError::CutShort),
        (&[0x40], HpackError::CutShort),
        (&[0x41], HpackError::CutShort),
        (&[0x00, 0x05, b'a'], HpackError::CutShort),
        (&[0x80], HpackError::Index(0)),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], HpackError::Integer),
        (&[0x3f, 0xe2, 0x1f], HpackError::SizeUpdate),
        (&[0x82, 0x20], HpackError::SizeUpdate),
        (&[0x00, 0x81, 0xff, 0x00], HpackError::Huffman),
    ] {
        assert_eq!(decode(&mut Decoder::default(), block), Err(error), "{block:02x?}");
    }
}

#[test]
fn a_larger_table_takes_leave() {
    let mut block = Vec::new();
    encode::size_update(&mut block, 8192);
    let mut decoder = Decoder::default();
    decoder.allow(8192);
    assert!(decode(&mut decoder, &block).is_ok());
    decoder.allow(usize::MAX);
    block.clear();
    encode::size_update(&mut block, MAX_TABLE + 1);
    assert_eq!(decode(&mut decoder, &block), Err(HpackError::SizeUpdate));
}

#[test]
fn few_bytes_that_stand_for_many_end() {
    let mut decoder = Decoder::default();
    let mut block = vec![0x40];
    encode::integer(&mut block, 0, 7, 1);
    block.push(b'a');
    encode::integer(&mut block, 0, 7, 4000);
    block.resize(block.len() + 4000, b'v');
    let mut fields = Fields::default();
    block.resize(block.len() + 100, 0x80 | 62);
    decoder.decode(&block, &mut fields).unwrap();
    assert!(fields.too_large());
    block.resize(block.len() + 1000, 0x80 | 62);
    assert_eq!(decoder.decode(&block, &mut fields), Err(HpackError::TooMuch));
}

#[test]
fn what_is_written_is_read_and_leaves_no_trace() {
    let mut fields = Fields::default();
    for (name, value) in [
        (":method", "GET"),
        (":method", "PATCH"),
        (":path", "/"),
        (":status", "200"),
        ("x", ""),
        ("accept", ""),
        ("cookie", "a"),
        ("accept-encoding", "gzip, deflate"),
        ("accept-encoding", "br"),
    ] {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    let mut block = Vec::new();
    encode::fields(&mut block, &fields);
    encode::field(&mut block, b"authorization", b"secret", true);
    encode::field(&mut block, b"y", &[b'z'; 5000], true);
    let mut decoder = Decoder::default();
    let read = decode(&mut decoder, &block).unwrap();
    assert_eq!(read.len(), 11);
    assert_eq!(read[1].1, "PATCH");
    assert!(read[9].2 && read[10].2 && !read[0].2);
    assert_eq!(decode(&mut decoder, &[0x80 | 62]), Err(HpackError::Index(62)));
}
