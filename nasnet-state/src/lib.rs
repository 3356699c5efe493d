//! nasnet-state: see the README.
