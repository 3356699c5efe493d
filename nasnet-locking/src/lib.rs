//! nasnet-locking: see the README.
