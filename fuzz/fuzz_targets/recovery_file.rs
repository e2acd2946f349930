#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use uruk_tabletserver::server::inspect;

fuzz_target!(|data: &[u8]| {
    inspect::recovery(&Bytes::copy_from_slice(data));
});
