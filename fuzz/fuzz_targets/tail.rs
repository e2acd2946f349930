#![no_main]

use libfuzzer_sys::fuzz_target;
use uruk_tabletserver::engine::sstable::decode;

fuzz_target!(|data: &[u8]| decode::tail(data));
