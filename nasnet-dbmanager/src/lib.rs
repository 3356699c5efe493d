//! nasnet-dbmanager: see the README.
