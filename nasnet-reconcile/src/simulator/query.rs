//! Choosing rows and fields: `?key=value`, `.proplist` and the `.query` stack.

use super::refusal::Refusal;
use crate::device::RawFields;

/// Keeps the rows whose printed values equal all of these (S19).
pub(crate) fn filter(rows: &mut Vec<RawFields>, conditions: &[(String, String)]) {
    rows.retain(|row| conditions.iter().all(|(name, value)| row.get(name) == Some(value)));
}

/// Keeps these fields; names that no row has are ignored (S19a).
pub(crate) fn project(row: &mut RawFields, names: &[String]) {
    row.retain(|name, _| names.iter().any(|wanted| wanted == name));
}

/// Keeps the rows for which the words leave true on the stack (S20).
pub(crate) fn evaluate(rows: &mut Vec<RawFields>, words: &[String]) -> Result<(), Refusal> {
    if let Some(unknown) = words.iter().find(|word| word.starts_with('#') && !is_operators(word)) {
        return Err(Refusal::invalid_value(unknown));
    }
    rows.retain(|row| holds(row, words));
    Ok(())
}

fn is_operators(word: &str) -> bool {
    word[1..].chars().all(|c| matches!(c, '|' | '&' | '!' | '.' | '0'..='9'))
}

fn holds(row: &RawFields, words: &[String]) -> bool {
    let mut stack: Vec<bool> = Vec::new();
    for word in words {
        match word.strip_prefix('#') {
            Some(operators) => operators.chars().for_each(|operator| operate(&mut stack, operator)),
            None => stack.push(term(row, word)),
        }
    }
    // What is left on the stack must all be true.
    stack.into_iter().all(|value| value)
}

fn operate(stack: &mut Vec<bool>, operator: char) {
    let Some(last) = stack.pop() else { return };
    match operator {
        '!' => stack.push(!last),
        '|' => {
            let other = stack.pop().unwrap_or(false);
            stack.push(last || other);
        }
        '&' => {
            let other = stack.pop().unwrap_or(true);
            stack.push(last && other);
        }
        _ => stack.push(last),
    }
}

fn term(row: &RawFields, word: &str) -> bool {
    if let Some(name) = word.strip_prefix('-') {
        return !row.contains_key(name);
    }
    let compare = |rest: &str, wanted: std::cmp::Ordering| {
        let Some((name, value)) = rest.split_once('=') else { return false };
        row.get(name).is_some_and(|own| order(own, value) == wanted)
    };
    if let Some(rest) = word.strip_prefix('<') {
        compare(rest, std::cmp::Ordering::Less)
    } else if let Some(rest) = word.strip_prefix('>') {
        compare(rest, std::cmp::Ordering::Greater)
    } else {
        match word.trim_start_matches('=').split_once('=') {
            Some((name, value)) => row.get(name).is_some_and(|own| own == value),
            None => row.contains_key(word),
        }
    }
}

fn order(own: &str, other: &str) -> std::cmp::Ordering {
    match (own.parse::<u64>(), other.parse::<u64>()) {
        (Ok(own), Ok(other)) => own.cmp(&other),
        _ => own.cmp(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(words: &[&str]) -> Vec<String> {
        let row = |name: &str, kind: &str, mtu: &str| {
            RawFields::from([("name", name), ("type", kind), ("mtu", mtu)].map(|(k, v)| (k.to_owned(), v.to_owned())))
        };
        let mut rows = vec![row("ether1", "ether", "1500"), row("ether2", "ether", "9000"), row("wg0", "wg", "1420")];
        rows[2].insert("comment".to_owned(), "x".to_owned());
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        evaluate(&mut rows, &words).unwrap();
        rows.into_iter().filter_map(|mut row| row.remove("name")).collect()
    }

    #[test]
    fn the_query_stack_combines_terms() {
        assert_eq!(chosen(&["type=ether"]), ["ether1", "ether2"]);
        assert_eq!(chosen(&["type=ether", "mtu=9000"]), ["ether2"]);
        assert_eq!(chosen(&["name=ether1", "name=wg0", "#|"]), ["ether1", "wg0"]);
        assert_eq!(chosen(&["type=ether", "#!"]), ["wg0"]);
        assert_eq!(chosen(&["comment"]), ["wg0"]);
        assert_eq!(chosen(&["-comment"]), ["ether1", "ether2"]);
        assert_eq!(chosen(&[">mtu=1420"]), ["ether1", "ether2"]);
        assert_eq!(chosen(&["<mtu=1500"]), ["wg0"]);
        assert!(evaluate(&mut Vec::new(), &["#x".to_owned()]).is_err());
    }
}
