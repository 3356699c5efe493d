//! Which events a read asks for.

use std::ops::RangeInclusive;

use nasnet_dbmanager::Scope;
use ulid::Ulid;

use crate::block::Peek;
use crate::class::Class;
use crate::event::{Level, Recorded};
use crate::hot::log::Order;
use crate::name::{EventType, StreamName};
use crate::position::Position;

/// A selection of events: all conditions must hold. Without conditions it is everything, oldest first.
#[derive(Debug, Clone)]
#[must_use]
pub struct Query {
    pub(crate) scopes: Option<Vec<Scope>>,
    pub(crate) stream: Option<StreamName>,
    pub(crate) stream_prefix: Option<String>,
    pub(crate) kind: Option<EventType>,
    pub(crate) kind_prefix: Option<String>,
    pub(crate) classes: Option<Vec<Class>>,
    pub(crate) level_min: Level,
    pub(crate) actor: Option<String>,
    pub(crate) correlation_id: Option<Ulid>,
    pub(crate) id: Option<Ulid>,
    pub(crate) wall_ms: Option<RangeInclusive<i64>>,
    pub(crate) after: Position,
    pub(crate) until: Position,
    pub(crate) order: Order,
    pub(crate) limit: Option<u64>,
}

impl Query {
    /// Every event of every scope.
    pub const fn all() -> Self {
        Self {
            scopes: None,
            stream: None,
            stream_prefix: None,
            kind: None,
            kind_prefix: None,
            classes: None,
            level_min: Level::Debug,
            actor: None,
            correlation_id: None,
            id: None,
            wall_ms: None,
            after: Position::START,
            until: Position::END,
            order: Order::Forwards,
            limit: None,
        }
    }

    /// Every event of one scope.
    pub fn scope(scope: Scope) -> Self {
        Self::scopes([scope])
    }

    /// Every event of some scopes.
    pub fn scopes(scopes: impl IntoIterator<Item = Scope>) -> Self {
        Self { scopes: Some(scopes.into_iter().collect()), ..Self::all() }
    }

    /// The event with this id. Inside the idempotency window it is found at once; for an older one give a position or
    /// time range as well, or everything is searched.
    pub fn by_id(id: Ulid) -> Self {
        Self { id: Some(id), ..Self::all() }
    }

    /// Of one stream.
    pub fn stream(mut self, stream: StreamName) -> Self {
        self.stream = Some(stream);
        self
    }

    /// The part of this selection that belongs to one stream of one scope.
    pub(crate) fn only(mut self, scope: &Scope, stream: &StreamName) -> Self {
        self.scopes = Some(vec![scope.clone()]);
        self.stream = Some(stream.clone());
        self
    }

    /// Of streams whose name starts with `prefix`, such as `resource/`.
    pub fn stream_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.stream_prefix = Some(prefix.into());
        self
    }

    /// Of one type.
    pub fn kind(mut self, kind: EventType) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Of the types under a dotted prefix: `resource` and `resource.` cover `resource.created`, and an empty one everything.
    pub fn kind_prefix(mut self, prefix: impl Into<String>) -> Self {
        let mut prefix = prefix.into();
        if prefix.ends_with('.') {
            prefix.pop();
        }
        self.kind_prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
        self
    }

    /// Of one class; given again, of that one too.
    pub fn class(mut self, class: Class) -> Self {
        self.classes.get_or_insert_default().push(class);
        self
    }

    /// At least this loud.
    pub const fn level_min(mut self, level: Level) -> Self {
        self.level_min = level;
        self
    }

    /// Caused by this actor.
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = Some(actor.into());
        self
    }

    /// Of one request or run.
    pub const fn correlation_id(mut self, id: Ulid) -> Self {
        self.correlation_id = Some(id);
        self
    }

    /// Recorded between two instants of the wall clock, in milliseconds. The clock is for people: it may have jumped.
    pub const fn wall_ms(mut self, range: RangeInclusive<i64>) -> Self {
        self.wall_ms = Some(range);
        self
    }

    /// After a position, which is not included: continue where a page ended.
    pub const fn after(mut self, position: Position) -> Self {
        self.after = position;
        self
    }

    /// Up to a position, which is included.
    pub const fn until(mut self, position: Position) -> Self {
        self.until = position;
        self
    }

    /// Newest first.
    pub const fn backwards(mut self) -> Self {
        self.order = Order::Backwards;
        self
    }

    /// At most this many.
    pub const fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// True when the event meets every condition but the limit.
    #[must_use]
    pub fn matches(&self, event: &Recorded) -> bool {
        event.position > self.after
            && event.position <= self.until
            && self.wants_scope(&event.scope)
            && self.stream.as_ref().is_none_or(|stream| *stream == event.stream)
            && self.stream_prefix.as_ref().is_none_or(|prefix| event.stream.as_str().starts_with(prefix))
            && self.wants_kind(event.kind.as_str())
            && self.classes.as_ref().is_none_or(|classes| classes.contains(&event.class))
            && event.level >= self.level_min
            && self.actor.as_ref().is_none_or(|actor| event.actor.as_ref() == Some(actor))
            && self.correlation_id.is_none_or(|id| event.correlation_id == Some(id))
            && self.id.is_none_or(|id| event.id == id)
            && self.wall_ms.as_ref().is_none_or(|range| range.contains(&event.wall_ms))
    }

    /// As [`Query::matches`], of an event that is not put together.
    pub(crate) fn wants(&self, event: &Peek<'_>) -> bool {
        event.position > self.after
            && event.position <= self.until
            && self.scopes.as_ref().is_none_or(|scopes| scopes.iter().any(|scope| scope.as_str() == event.scope))
            && self.stream.as_ref().is_none_or(|stream| stream.as_str() == event.stream)
            && self.stream_prefix.as_ref().is_none_or(|prefix| event.stream.starts_with(prefix))
            && self.wants_kind(event.kind)
            && self.classes.as_ref().is_none_or(|classes| classes.contains(&event.class))
            && event.level >= self.level_min
            && self.actor.as_deref().is_none_or(|actor| event.actor == Some(actor))
            && self.correlation_id.is_none_or(|id| event.correlation_id == Some(id))
            && self.id.is_none_or(|id| event.id == id)
            && self.wall_ms.as_ref().is_none_or(|range| range.contains(&event.wall_ms))
    }

    pub(crate) fn wants_scope(&self, scope: &Scope) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.contains(scope))
    }

    /// True when events of this type may be wanted.
    pub(crate) fn wants_kind(&self, kind: &str) -> bool {
        // Where it would have to end first: that alone tells most types apart.
        let under = |prefix: &String| {
            kind.len() >= prefix.len()
                && kind.as_bytes().get(prefix.len()).is_none_or(|next| *next == b'.')
                && kind.starts_with(prefix.as_str())
        };
        self.kind.as_ref().is_none_or(|wanted| wanted.as_str() == kind) && self.kind_prefix.as_ref().is_none_or(under)
    }

    /// The classes that may be wanted, each as its bit.
    pub(crate) fn class_bits(&self) -> u8 {
        self.classes.as_ref().map_or(u8::MAX, |classes| classes.iter().fold(0, |bits, class| bits | class.bit()))
    }

    /// True when events recorded in this span may be wanted.
    pub(crate) fn wants_span(&self, (from, to): (i64, i64)) -> bool {
        self.wall_ms.as_ref().is_none_or(|range| *range.start() <= to && *range.end() >= from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_types_ends_where_a_word_does() {
        let all = ["resource", "resource.created", "resource.created.late", "resources.created", "res.ource", "route"];
        let wanted = |prefix: &str| {
            let query = Query::all().kind_prefix(prefix);
            all.into_iter().filter(|kind| query.wants_kind(kind)).collect::<Vec<_>>()
        };
        for prefix in ["resource", "resource."] {
            assert_eq!(wanted(prefix), all[..3], "{prefix}");
        }
        assert_eq!(wanted("resource.created"), all[1..3]);
        assert_eq!(wanted("res"), all[4..5]);
        assert_eq!(wanted("resource.created.late.more"), [""; 0]);
        for everything in ["", "."] {
            assert_eq!(wanted(everything), all, "{everything:?}");
        }
    }
}
