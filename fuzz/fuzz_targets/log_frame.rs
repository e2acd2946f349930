#![no_main]

use libfuzzer_sys::fuzz_target;
use uruk_tabletserver::server::decode;

fuzz_target!(|data: &[u8]| decode::log_frame(data));
