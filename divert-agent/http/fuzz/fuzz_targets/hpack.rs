//! Header blocks, one after the other on one connection: no panic, and what another decoder reads is what is read here;
//! what is written of it is read back.
#![no_main]

use divert_http::h2::Fields;
use divert_http::h2::hpack::{Decoder, HpackError, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|blocks: &[u8]| {
    let (mut ours, mut theirs) = (Decoder::default(), loona_hpack::Decoder::new());
    theirs.set_max_allowed_table_size(4096);
    let mut fields = Fields::default();
    for block in blocks.split(|byte| *byte == 0xfe) {
        let read = ours.decode(block, &mut fields);
        let other = theirs.decode(block);
        match (read, other) {
            (Ok(_), Ok(other)) => {
                if fields.too_large() {
                    return;
                }
                let list: Vec<(Vec<u8>, Vec<u8>)> =
                    fields.iter().map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect();
                assert_eq!(list, other);
                let mut written = Vec::new();
                encode::fields(&mut written, &fields);
                let mut again = Fields::default();
                Decoder::default().decode(&written, &mut again).expect("what was written is a block");
                assert!(again.iter().eq(fields.iter()));
            }
            // It wants a field behind a change of the table's size, we allow a block without.
            (Ok(_), Err(_)) => {
                assert!(block.iter().all(|_| fields.iter().next().is_none()), "{block:02x?}");
                return;
            }
            // It lets the table's size change behind a field.
            (Err(HpackError::SizeUpdate | HpackError::TooMuch), Ok(_)) => return,
            (Err(error), Ok(_)) => panic!("{error} in {block:02x?}"),
            (Err(_), Err(_)) => return,
        }
    }
});
