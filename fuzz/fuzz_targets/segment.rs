#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use uruk_dfs_sim::format::inspect;

fuzz_target!(|data: &[u8]| {
    inspect::segment(&Bytes::copy_from_slice(data), None);
});
