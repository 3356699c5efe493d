//! Which events a consumer wants.

use nasnet_dbmanager::Scope;
use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::event::Level;
use crate::name::StreamName;
use crate::query::Query;

/// What a consumer is shown: all conditions must hold. Without conditions it is everything.
///
/// A part of the consumer's stored definition, so that retention knows what it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<Scope>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<StreamName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    classes: Option<Vec<Class>>,
    level_min: Level,
}

impl Default for Filter {
    fn default() -> Self {
        Self::all()
    }
}

impl Filter {
    /// Every event of every scope.
    pub const fn all() -> Self {
        Self {
            scopes: None,
            stream: None,
            stream_prefix: None,
            kind_prefix: None,
            classes: None,
            level_min: Level::Debug,
        }
    }

    /// Of one scope; given again, of that one too.
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scopes.get_or_insert_default().push(scope);
        self
    }

    /// Of one stream.
    pub fn stream(mut self, stream: StreamName) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Of streams whose name starts with `prefix`, such as `resource/`.
    pub fn stream_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.stream_prefix = Some(prefix.into());
        self
    }

    /// Of the types under a dotted prefix: `resource` covers `resource.created`.
    pub fn kind_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.kind_prefix = Some(prefix.into());
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

    /// The part of this selection that belongs to one scope.
    pub(crate) fn within(mut self, scope: Scope) -> Self {
        self.scopes = Some(vec![scope]);
        self
    }

    /// True when one scope is wanted and no other: then there is nothing to go on with while it cannot be read.
    pub(crate) fn is_of_one_scope(&self) -> bool {
        self.scopes.as_ref().is_some_and(|scopes| scopes.iter().all(|scope| Some(scope) == scopes.first()))
    }

    /// True when events of this scope may be wanted.
    #[must_use]
    pub fn wants_scope(&self, scope: &Scope) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.contains(scope))
    }

    /// True when events of this class may be wanted.
    #[must_use]
    pub fn wants_class(&self, class: Class) -> bool {
        self.classes.as_ref().is_none_or(|classes| classes.contains(&class))
    }

    /// True when some of a lot of events may be wanted, of which only their types and streams are known, and their class if
    /// it is the same. A name that is unknown may be any.
    pub(crate) fn may_want<'a>(
        &self,
        class: Option<Class>,
        mut kinds: impl Iterator<Item = Option<&'a str>>,
        mut streams: impl Iterator<Item = Option<&'a str>>,
    ) -> bool {
        let query = self.query();
        let is_stream = |stream: &str| {
            self.stream.as_ref().is_none_or(|wanted| wanted.as_str() == stream)
                && self.stream_prefix.as_ref().is_none_or(|prefix| stream.starts_with(prefix))
        };
        class.is_none_or(|class| self.wants_class(class))
            && kinds.any(|kind| kind.is_none_or(|kind| query.wants_kind(kind)))
            && streams.any(|stream| stream.is_none_or(is_stream))
    }

    /// The same selection as a query, everything from the beginning.
    pub fn query(&self) -> Query {
        let mut query = match &self.scopes {
            Some(scopes) => Query::scopes(scopes.iter().cloned()),
            None => Query::all(),
        };
        query.stream.clone_from(&self.stream);
        query.stream_prefix.clone_from(&self.stream_prefix);
        query.classes.clone_from(&self.classes);
        if let Some(prefix) = &self.kind_prefix {
            query = query.kind_prefix(prefix);
        }
        query.level_min(self.level_min)
    }
}
