//! Who asks, and what the group of the login allows.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::dispatch::Rights;
use super::message::Request;
use super::profile::{Denial, SimProfile};
use super::refusal::Refusal;
use super::store::Store;
use super::view::Secrets;

/// Returns the login's name and what it may do (S10).
pub(crate) fn authenticate(
    store: &Store,
    profile: &SimProfile,
    request: &Request,
) -> Result<(String, Rights), Refusal> {
    let (name, password) = credentials(request).ok_or_else(Refusal::unauthorized)?;
    let user = store
        .rows("/user")
        .iter()
        .find(|row| row.field("name") == Some(&name) && !row.is_disabled())
        .filter(|row| row.field("password").unwrap_or_default() == password)
        .ok_or_else(Refusal::unauthorized)?;
    let group = user.field("group").unwrap_or_default();
    let policy = store
        .rows("/user/group")
        .iter()
        .find(|row| row.field("name") == Some(group))
        .and_then(|row| row.field("policy"))
        .unwrap_or_default();
    let has = |wanted: &str| policy.split(',').any(|policy| policy == wanted);
    if !has("rest-api") {
        return Err(Refusal::no_permission(denial_status(profile)));
    }
    let secrets = if has("sensitive") { Secrets::Shown } else { Secrets::Hidden };
    Ok((name, Rights { read: has("read"), write: has("write"), policy: has("policy"), secrets }))
}

/// Returns the status a missing policy is refused with.
pub(crate) fn denial_status(profile: &SimProfile) -> u16 {
    match profile.denial {
        Denial::Forbidden => 403,
        Denial::BadRequest => 400,
    }
}

fn credentials(request: &Request) -> Option<(String, String)> {
    let encoded = request.authorization.as_deref()?.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (name, password) = decoded.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}
