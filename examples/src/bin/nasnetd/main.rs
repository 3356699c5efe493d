//! nasnetd: the thin daemon.
fn main() {}
