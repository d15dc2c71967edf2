#![no_main]
#![allow(missing_docs, reason = "the macro's own items")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::ext_proc(data));
