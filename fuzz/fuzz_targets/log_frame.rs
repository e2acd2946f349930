#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use uruk_tabletserver::server::record::{Record, parse_frame};

fuzz_target!(|data: &[u8]| {
    for raw in parse_frame(Bytes::copy_from_slice(data)).unwrap_or_default() {
        let _ = Record::parse(raw.body);
    }
});
