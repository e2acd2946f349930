#![no_main]

use libfuzzer_sys::fuzz_target;
use uruk_dfs_sim::format::inspect;

fuzz_target!(|data: &[u8]| {
    inspect::graves(data);
});
