#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| sidelink_fuzz::recorded(data));
