#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use uruk_consensus::inspect;

fuzz_target!(|data: &[u8]| {
    inspect::snapshot_file(&Bytes::copy_from_slice(data));
});
