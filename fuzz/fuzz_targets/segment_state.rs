#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use uruk_dfs_sim::format::inspect;

fuzz_target!(|data: &[u8]| {
    inspect::state(&Bytes::copy_from_slice(data));
});
