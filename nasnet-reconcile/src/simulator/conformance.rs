//! What the simulator imitates, and how sure the project is that routers behave so.

/// Where the knowledge of a behaviour comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// The vendor's documentation.
    Doc,
    /// Measured on a router by someone who published the exchange.
    Lab,
    /// The command tree of a RouterOS version.
    Tree,
    /// A plausible guess.
    Guess,
}

/// One imitated behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// Its id; the code that implements it names the id.
    pub id: &'static str,
    /// Where it is known from.
    pub tag: Tag,
    /// What it is.
    pub text: &'static str,
}

const fn doc(id: &'static str, text: &'static str) -> Behaviour {
    Behaviour { id, tag: Tag::Doc, text }
}

const fn lab(id: &'static str, text: &'static str) -> Behaviour {
    Behaviour { id, tag: Tag::Lab, text }
}

const fn tree(id: &'static str, text: &'static str) -> Behaviour {
    Behaviour { id, tag: Tag::Tree, text }
}

const fn guess(id: &'static str, text: &'static str) -> Behaviour {
    Behaviour { id, tag: Tag::Guess, text }
}

/// Every behaviour that is implemented.
pub const TABLE: &[Behaviour] = &[
    tree("S01", "arguments outside a known menu's table are refused as unknown parameters"),
    tree("S02", "menus with a table have typed arguments and defaults; all others keep rows of plain strings"),
    lab("S02a", "/interface lists the interfaces of all types and changes what all of them have"),
    lab("S03", "ids are an asterisk and upper-case hexadecimal digits, counted per menu and never handed out twice"),
    lab("S04", "rows are static, dynamic or built in"),
    lab("S04a", "an enabled address on an enabled interface has a dynamic connected route"),
    lab("S06", "a menu of one row prints an object, is changed by POST set and refuses PUT, PATCH and DELETE"),
    doc(
        "S10",
        "basic authentication against /user; the group's policies decide; how a missing one is refused is switched",
    ),
    lab("S11", "201 for PUT, 204 for DELETE, 200 for everything else that succeeds"),
    doc("S12", "printed values are strings; requests may hold numbers and truth values"),
    lab("S12b", "control characters and bytes that are no UTF-8 are printed raw (switched)"),
    lab("S13", "an error body holds detail, error and message in this order"),
    lab("S15", "an unknown method is answered with status 503 and HTML"),
    guess("S16", "a body that is no JSON object is refused with status 400"),
    lab("S17", "ids travel raw; a percent-encoded asterisk is refused"),
    doc("S18", "GET resolves names of rows"),
    doc("S19", "?name=value keeps rows whose printed values are equal"),
    guess("S19a", "names in .proplist that no row has are ignored"),
    doc("S20", ".query is a stack of terms and operators"),
    lab("S21", "keys that start with a question mark in a POST body are refused"),
    lab("S22", "PUT checks arguments, references and uniqueness, fills in defaults and prints the whole row"),
    guess("S22a", "the texts that refuse a second row of the same name or key"),
    lab(
        "S22b",
        "a WireGuard interface without a key or a port gets them, and its public key follows from its private key",
    ),
    lab("S23", "PATCH prints the whole row; dynamic rows are refused (the text is switched)"),
    lab("S23b", "an empty value, null, or a name with ! before it clears a field"),
    lab("S24", "DELETE of a missing row is 404, of a menu without remove 406, of a built-in row a failure"),
    guess("S24b", "references to a removed row print its id"),
    doc("S25", "POST performs print, get, add, set, remove, move, enable and disable"),
    doc("S26", "move and place-before order the rows of menus that have an order"),
    lab("S28a", "an address without a mask gets /32, and its network is derived"),
    guess("S28b", "the host part of a network is cleared"),
    lab("S28c", "a flag such as fib reads back without a value"),
    lab("S28d", "a group's policy reads back complete, with ! before what is not granted"),
    guess("S28e", "references follow when a row is renamed"),
    doc("S28f", "a bridge's priority is printed in hexadecimal"),
    doc("S29", "secrets are printed only to logins with the policy sensitive, a user's password to nobody"),
    lab("S33", "a REST login shows as two rows in /user/active"),
    lab("S40", "the texts of refusals"),
    guess("S50", "an export's rows are loaded as they are, whatever they refer to"),
    guess("S51", "ports that an export refers to and does not print exist"),
    doc("F01", "connecting is refused"),
    doc("F02", "no answer ever comes"),
    doc("F03", "the connection closes before the command is done"),
    doc("F04", "the command is done and its answer is lost"),
    doc("F05", "the answer breaks off in the middle of its body"),
    doc("F06", "the answer comes late"),
    doc("F08", "the login is refused"),
    doc("F09", "a page of HTML with status 503"),
    doc("F10", "JSON that breaks off"),
    guess("F12", "a command on several rows stops at the first that is refused and keeps the ones before"),
];

/// Counts the behaviours of each tag.
pub fn counts() -> [(Tag, usize); 4] {
    let count = |tag: Tag| TABLE.iter().filter(|behaviour| behaviour.tag == tag).count();
    [Tag::Doc, Tag::Lab, Tag::Tree, Tag::Guess].map(|tag| (tag, count(tag)))
}
