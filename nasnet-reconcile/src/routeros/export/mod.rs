//! Reads and prints `/export` files: the text form of a RouterOS configuration.
//!
//! ```
//! use nasnet_reconcile::routeros::export;
//!
//! let text = br#"# 2025-03-01 09:30:00 by RouterOS 7.16.2
//! /interface ethernet
//! set [ find default-name=ether1 ] comment="Uplink \"north\"" name=wan
//! /ip address
//! add address=192.168.88.1/24 interface=bridge \
//!     network=192.168.88.0
//! "#;
//! let read = export::parse(text);
//! assert!(read.errors.is_empty());
//! let seed = read.rows();
//! let ports = seed.rows(&"/interface/ethernet".parse()?);
//! assert_eq!(ports[0].fields["comment"], "Uplink \"north\"");
//! assert!(seed.referenced_interfaces().contains("bridge"));
//! let printed = export::print(&seed, export::Style::Compact);
//! assert_eq!(export::parse(&printed).rows().menus, seed.menus);
//! # Ok::<_, nasnet_reconcile::device::InvalidMenuPath>(())
//! ```
//!
//! Reading has two steps. [`parse`] turns text into statements and never fails as a whole: a statement that cannot be
//! understood is an entry of [`Export::errors`] with its line and column. [`Export::rows`] runs the statements on an
//! empty device and returns the [`Seed`]: rows for every menu, known to us or not.
//!
//! # Guarantees
//!
//! - Nothing is dropped: every statement ends in a row, in [`Seed::unapplied`] with the reason (and is printed again),
//!   or in [`Export::errors`]. Comment lines and menu lines are in [`Export::statements`] only.
//! - Values are decoded without loss. Escapes stand for their bytes; bytes that are no UTF-8 (exports written in
//!   latin-1 or Windows code pages) are carried as [`crate::routeros::text`] says. NUL and control characters stay.
//! - Printing and reading again gives the same rows and the same unapplied statements, as long as no two rows of a menu
//!   that the device has by itself swap their names.
//! - Any input is read in time linear in its length; work on rows has a fixed bound, beyond which commands are unapplied.
//! - Neither errors nor problems nor `Debug` repeat the values of fields that can hold secrets.
//!
//! # What is read
//!
//! Compact, `terse`, `verbose` and `show-sensitive` exports of RouterOS 6 and 7, with either header; menu lines with
//! blanks or slashes, and those that go on from the menu before (`..`, `port`, `address add ..`); several statements on
//! a line; `add`, `set`, `remove`, `enable`, `disable` and `move`; `place-before=`, `numbers=`, `!field`, fields
//! without a value (`blackhole`), group names left out after the first (`security.ft=yes .wps=disable`); rows
//! chosen by `[ find ]` with conditions joined by `and` (`=`, `!=`, `~` with plain text and anchors, flags), by number,
//! id or name; values continued over lines anywhere, quoted texts over several lines; CRLF, byte order marks, UTF-16;
//! console prompts.
//!
//! # What is not read yet
//!
//! - Scripts (`:if`, `:global`, `{ .. }`), expressions and variables are kept as written and not evaluated.
//! - `or` and real regular expressions in `find`, `copy-from=`, `unset` and `comment` keep the command unapplied.
//! - A verbose export lists defaults as fields. They are rows' fields like any other: nothing tells here which of them
//!   differ from the factory's, and version 6 names of menus and fields are not translated to version 7.
//! - A path that goes on from the menu before is an error unless it leads to a menu that is known.

mod apply;
mod argument;
mod excerpt;
mod lex;
mod parse;
mod position;
mod print;
mod seed;
mod selector;
mod statement;

pub use apply::apply;
pub use parse::parse;
pub use print::{Style, export as print};
pub use seed::{Problem, RowOrigin, Seed, SeedRow, Unapplied};
pub use statement::{Argument, Command, Export, Header, ParseError, Statement, StatementKind, Tally, Value};
