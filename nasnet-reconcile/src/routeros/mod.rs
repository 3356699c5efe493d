//! The RouterOS adapter: the REST client, the menus to observe and the reader of `/export` files.

pub mod export;
pub mod kinds;
pub mod menus;
pub mod rest;
pub mod text;
