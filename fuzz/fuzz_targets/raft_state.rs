#![no_main]

use libfuzzer_sys::fuzz_target;
use uruk_consensus::decode;

fuzz_target!(|data: &[u8]| decode::raft_state(data));
