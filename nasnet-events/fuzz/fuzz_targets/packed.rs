#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nasnet_events::fuzzing::packed(bytes));
