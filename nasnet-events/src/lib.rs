//! nasnet-events: see the README.
