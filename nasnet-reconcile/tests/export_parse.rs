//! What the export reader makes of every form of text, and where it says that something is wrong.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use nasnet_reconcile::routeros::export::{Command, Export, StatementKind, Value, parse};
use nasnet_reconcile::routeros::text;

fn commands(export: &Export) -> Vec<&Command> {
    export
        .statements
        .iter()
        .filter_map(|statement| match &statement.kind {
            StatementKind::Command(command) => Some(command),
            _ => None,
        })
        .collect()
}

/// Reads one `set` and returns the value of its only field.
fn value_of(text: &[u8]) -> Result<Value, String> {
    let mut input = b"/system note\nset note=".to_vec();
    input.extend_from_slice(text);
    let export = parse(&input);
    if let Some(error) = export.errors.first() {
        return Err(error.to_string());
    }
    match commands(&export).as_slice() {
        [command] if command.arguments.len() == 1 => Ok(command.arguments[0].value.clone()),
        other => Err(format!("{} commands", other.len())),
    }
}

fn decoded(text: &[u8]) -> Vec<u8> {
    match value_of(text) {
        Ok(Value::Word(value) | Value::Quoted(value)) => text::to_bytes(&value),
        _ => panic!("{:?} has no plain value", String::from_utf8_lossy(text)),
    }
}

fn errors(text: &str) -> Vec<(u32, u32, String)> {
    parse(text.as_bytes()).errors.into_iter().map(|error| (error.line, error.column, error.message)).collect()
}

#[test]
fn every_escape_stands_for_its_byte() {
    assert_eq!(decoded(br#""a\"b\\c\$d\?e\_f""#), br#"a"b\c$d?e f"#);
    assert_eq!(decoded(br#""\n\r\t\a\b\f\v\00\7F\E9\C3\BC""#), b"\n\r\t\x07\x08\x0C\x0B\0\x7F\xE9\xC3\xBC");
    assert_eq!(decoded(br#""\AF\BB\FF\0a""#), b"\xAF\xBB\xFF\n");
    assert_eq!(decoded(br"a\_b\22"), b"a b\"");
    assert_eq!(decoded(b"\"raw \xE9 \xC3\xBC \x00 \x1b\""), b"raw \xE9 \xC3\xBC \x00 \x1b");
}

#[test]
fn a_value_goes_on_behind_a_continuation_anywhere() {
    assert_eq!(decoded(b"\"one \\\n    two\""), b"one two");
    assert_eq!(decoded(b"\"one\\\n    \\_two\""), b"one two");
    assert_eq!(decoded(b"\"one\\\r\n\ttwo\""), b"onetwo");
    assert_eq!(decoded(b"\"a\\\\\\\n    .uk\""), b"a\\.uk");
    assert_eq!(decoded(b"\\\n    \"quoted below\""), b"quoted below");
    assert_eq!(decoded(b"10.0.0.0/\\\n    8"), b"10.0.0.0/8");
    assert_eq!(decoded(b"\\\n    plain"), b"plain");
    assert_eq!(decoded(b"\"copied with blanks\\  \n    behind\""), b"copied with blanksbehind");
    assert_eq!(decoded(b"\"$\""), b"$");
    assert_eq!(decoded(b"\"\""), b"");
    assert_eq!(decoded(b""), b"");
}

#[test]
fn a_script_by_hand_may_go_over_lines_inside_its_quotes() {
    assert_eq!(decoded(b"\"\n:put \\\"a\\\"\n/system reboot\n\"\n"), b"\n:put \"a\"\n/system reboot\n");
}

#[test]
fn what_only_a_device_can_evaluate_is_kept_as_written() {
    for code in [
        "$address",
        "[/ip address get 0 address]",
        "(1 + 2)",
        "{ether2;ether3}",
        "{\n  :put \"} ]\"\n  # } it's\n}",
        "\"name is $name\"",
        "\"$[/system identity get name]\"",
        "$[find a=b]",
        "{a={b=1};c=\"x\"}",
    ] {
        assert!(value_of(code.as_bytes()) == Ok(Value::Expression(code.to_owned())), "{code}");
    }
}

#[test]
fn a_menu_is_entered_by_its_own_line_and_not_by_a_command_with_a_path() {
    let text = "/ip firewall filter\nadd chain=a\n/ip/firewall/nat\nadd chain=b\n/ip address add address=c\nadd chain=d\n\
                /ip/address/add address=e\n  /ip   firewall\t mangle \nset[find] chain=f\n/ip firewall \\\n  raw add chain=g";
    let export = parse(text.as_bytes());
    assert_eq!(export.errors, []);
    let seen: Vec<_> = commands(&export)
        .into_iter()
        .map(|command| (command.menu.as_str().to_owned(), command.verb.as_str(), command.arguments.len()))
        .collect();
    let expected = [
        ("/ip/firewall/filter", "add", 1),
        ("/ip/firewall/nat", "add", 1),
        ("/ip/address", "add", 1),
        ("/ip/firewall/nat", "add", 1),
        ("/ip/address", "add", 1),
        ("/ip/firewall/mangle", "set", 2),
        ("/ip/firewall/raw", "add", 1),
    ];
    assert_eq!(seen, expected.map(|(menu, verb, count)| (menu.to_owned(), verb, count)));
}

#[test]
fn fields_of_a_group_are_written_out() {
    let export = parse(b"/interface wifi\nset [ find default-name=wifi1 ] configuration=c configuration.mode=ap .ssid=\\\n    x security.ft=no .wps=disable");
    let names: Vec<_> = commands(&export)[0].arguments.iter().map(|argument| argument.name.as_deref()).collect();
    let expected = ["configuration", "configuration.mode", "configuration.ssid", "security.ft", "security.wps"];
    assert_eq!(names[0], None);
    assert_eq!(names[1..], expected.map(Some));
}

#[test]
fn both_headers_are_read() {
    let new = parse(b"# 2024-01-02 10:00:00 by RouterOS 7.16.2\r\n# software id = AB-1\r\n#\r\n# model = X\r\n# serial number = S1\r\n");
    assert_eq!(new.header.date.as_deref(), Some("2024-01-02 10:00:00"));
    assert_eq!(new.header.version.as_deref(), Some("7.16.2"));
    assert_eq!(new.header.software_id.as_deref(), Some("AB-1"));
    assert_eq!(new.header.model.as_deref(), Some("X"));
    assert_eq!(new.header.serial.as_deref(), Some("S1"));
    let old = parse(b"[admin@x] > /export\n# jan/02/2024 10:00:00 by RouterOS 6.49.10\n# software id = \n");
    assert_eq!(old.header.date.as_deref(), Some("jan/02/2024 10:00:00"));
    assert_eq!(old.header.version.as_deref(), Some("6.49.10"));
    assert_eq!(old.header.software_id.as_deref(), Some(""));
    let later = parse(b"/ip dns\nset servers=9.9.9.9\n# serial number = not a header\n");
    assert_eq!(later.header.serial, None);
}

#[test]
fn console_lines_and_comments_are_counted_and_change_nothing() {
    let text = "[admin@MikroTik] > /export\n/ip dns\n# a comment with \"a quote\n   # interface not ready\nset servers=1.1.1.1 # behind\n\
                [admin@MikroTik] /ip/dns> \n[admin@MikroTik] <SAFE> > quit\n";
    let tally = parse(text.as_bytes()).tally();
    assert_eq!((tally.menus, tally.commands, tally.comments, tally.noise, tally.errors), (1, 1, 3, 3, 0));
}

#[test]
fn scripts_end_with_the_line_that_closes_their_brackets() {
    let text = ":if (1 = 1) do={\n  :put \"}\"\n  # it's \"open\n} else={\n  :put 2\n}\n:global x [find]; :put $x\n/ip dns\nset servers=1.1.1.1";
    let export = parse(text.as_bytes());
    assert_eq!((export.tally().scripts, export.tally().commands, export.errors.len()), (3, 1, 0));
    assert_eq!(export.statements[1].line, 7);
}

#[test]
fn a_statement_behind_a_script_on_the_same_line_is_read() {
    let text = ":do { /ip dns; set servers=\"\" } on-error={}; /ip pool add name=p ranges=192.0.2.1; :delay 2s;\n\
                /certificate\nadd name=ca common-name=ca; sign ca; :delay 1s\n";
    let export = parse(text.as_bytes());
    assert_eq!(export.errors, []);
    assert_eq!((export.tally().scripts, export.tally().commands), (4, 2));
    let menus: Vec<&str> = commands(&export).iter().map(|command| command.menu.as_str()).collect();
    assert_eq!(menus, ["/ip/pool", "/certificate"]);
}

#[test]
fn paths_without_a_slash_go_on_from_the_menu_before() {
    let text = "ip address add address=192.0.2.1/24 interface=ether1\ninterface bridge\nadd name=br\nport add bridge=br interface=ether2\n\
                vlan\nadd bridge=br vlan-ids=5\n..\nadd name=br2\n.. vlan add name=v interface=br vlan-id=5\n../..\nsystem/identity/set name=x\n";
    let export = parse(text.as_bytes());
    assert_eq!(export.errors, []);
    let menus: Vec<&str> = commands(&export).iter().map(|command| command.menu.as_str()).collect();
    let expected = [
        "/ip/address",
        "/interface/bridge",
        "/interface/bridge/port",
        "/interface/bridge/vlan",
        "/interface/bridge",
        "/interface/vlan",
        "/system/identity",
    ];
    assert_eq!(menus, expected);
}

#[test]
fn what_only_looks_like_a_path_stays_an_error() {
    for line in ["port", "bridge address", "ip nowhere add a=b", "port a=b", "hello world", ".", "...", "sign"] {
        let text = format!("/ip address\n{line}\nadd kept=yes\n");
        let found = if line == "sign" { parse(text.as_bytes()).tally().scripts } else { errors(&text).len() };
        assert_eq!(found, 1, "{line}");
        let export = parse(text.as_bytes());
        assert_eq!(commands(&export)[0].menu.as_str(), "/ip/address", "{line}");
    }
}

#[test]
fn a_byte_order_mark_and_utf_16_are_no_obstacle() {
    let text = "/system identity\nset name=\"Büro\"\n";
    let utf16 = |mark: [u8; 2], bytes: fn(u16) -> [u8; 2]| {
        [mark.to_vec(), text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>()].concat()
    };
    let expected = parse(text.as_bytes());
    assert_eq!(expected.tally().commands, 1);
    assert_eq!(parse(&[b"\xEF\xBB\xBF".as_slice(), text.as_bytes()].concat()), expected);
    assert_eq!(parse(&utf16([0xFF, 0xFE], u16::to_le_bytes)), expected);
    assert_eq!(parse(&utf16([0xFE, 0xFF], u16::to_be_bytes)), expected);
    let broken = parse(b"\xFF\xFEa\0\x00\xD8");
    assert_eq!((broken.errors.len(), broken.statements.len()), (1, 0));
}

#[test]
fn errors_name_line_and_column_and_cost_one_line_only() {
    let cases: &[(&str, u32, u32, &str)] = &[
        ("add a=\"open", 2, 7, "a quoted text is never closed"),
        ("add a=\"x\" b=\"\\q\"", 2, 14, "unknown escape `\\q`"),
        ("add a=x\\zz", 2, 8, "unknown escape `\\z`"),
        ("add a=\"\\4\"", 2, 8, "an escape of a byte needs two hexadecimal digits"),
        ("add a=b\"c\"", 2, 8, "a quote in the middle of a word"),
        ("add a=\"b\"c", 2, 10, "text directly behind a closing quote"),
        ("add a=[find]x", 2, 13, "text directly behind a closing bracket"),
        ("set [ find a=b c=d", 2, 5, "`[` is never closed"),
        ("add a=(1 + 2]", 2, 13, "`]` closes nothing that is open"),
        ("add a=b ] c=d", 2, 9, "`]` closes nothing that is open"),
        ("add =b", 2, 5, "a field name is expected before `=`"),
        ("add a@b=c", 2, 5, "a field name is expected before `=`"),
        ("add !", 2, 5, "a field name is expected after `!`"),
        ("nonsense here", 2, 1, "`nonsense` is neither a menu nor a command"),
        ("a=b", 2, 1, "the field `a` stands outside a command"),
        ("  } a=b", 2, 3, "`}` begins neither a menu nor a command"),
        ("/ip Address", 2, 5, "menu names are written in lower case"),
        ("add ü=\"ü\" a=\"ü\\q\"", 2, 7, "a quote in the middle of a word"),
        ("add a=\"üü\" b=\"ü\\q\"", 2, 16, "unknown escape `\\q`"),
        ("add a=1 \\\n    b=\"\\q\"", 3, 8, "unknown escape `\\q`"),
    ];
    for (line, at_line, column, message) in cases {
        let text = format!("/ip address\n{line}\nadd kept=yes comment=\"a b\"\n");
        let export = parse(text.as_bytes());
        assert_eq!(errors(&text), [(*at_line, *column, (*message).to_owned())], "{line}");
        let kept = commands(&export);
        assert_eq!(kept.len(), 1, "{line}");
        assert_eq!(kept[0].arguments[0].name.as_deref(), Some("kept"), "{line}");
    }
}

#[test]
fn a_command_before_any_menu_is_an_error() {
    assert_eq!(errors("add a=b\n"), [(1, 1, "`add` stands before any menu".to_owned())]);
}

#[test]
fn an_open_quote_never_swallows_the_lines_behind_it() {
    let text = "/ip address\nadd comment=\"one\nadd comment=\"two\"\nadd comment=\"three\nadd comment=four\n/system identity\nset name=\"a b\"\n";
    let export = parse(text.as_bytes());
    assert_eq!(export.errors.iter().map(|error| error.line).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(commands(&export).len(), 3);
}

#[test]
fn errors_show_the_statement_but_never_a_secret() {
    let export =
        parse(b"/ppp secret\nadd name=joe password=canary\" service=l2tp\ncanary4lzdWz0==\nadd name=bob comment=\"x\n");
    assert_eq!(export.errors.len(), 3);
    assert_eq!(export.errors[0].excerpt, "add name=joe password=..");
    assert_eq!(export.errors[2].excerpt, "add name=bob comment=\"x");
    assert!(!format!("{export:?}").contains("canary"));
    for error in &export.errors {
        assert!(!error.to_string().contains("canary"));
    }
}
