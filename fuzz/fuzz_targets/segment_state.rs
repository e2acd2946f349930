#![no_main]

use libfuzzer_sys::fuzz_target;
use uruk_dfs_sim::format::decode;

fuzz_target!(|data: &[u8]| decode::segment_state(data));
