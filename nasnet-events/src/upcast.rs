//! Reads old forms of a body as the current one; what is stored never changes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::body::Body;
use crate::error::Error;
use crate::event::Recorded;
use crate::name::EventType;

type Step = Arc<dyn Fn(Value) -> Result<Value, String> + Send + Sync>;

/// Steps from one form of a body to a later one, by type and schema. A read applies them one after the other until none
/// applies; each leads to a higher schema, so that ends.
#[derive(Clone, Default)]
pub struct Upcasters {
    steps: HashMap<(EventType, u16), (u16, Step)>,
}

impl Upcasters {
    /// Makes a registry without steps: every body is read as it was written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the step that turns bodies of `kind` from schema `from` into schema `to`. A second step from the same schema
    /// replaces the first. What a failing step says becomes part of [`Error::Upcast`]: nothing of the facts belongs into it.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `to` is higher than `from`.
    pub fn with(
        mut self,
        kind: EventType,
        from: u16,
        to: u16,
        step: impl Fn(Value) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        if to <= from {
            let value = format!("{kind} {from} to {to}");
            return Err(Error::Invalid { what: "upcaster", value, why: "it must lead to a higher schema" });
        }
        self.steps.insert((kind, from), (to, Arc::new(step)));
        Ok(self)
    }

    /// Brings the body of an event to the current form. Sealed and shredded bodies stay as they are.
    pub(crate) fn apply(&self, event: &mut Recorded) -> Result<(), Error> {
        let Body::Json(text) = &event.body else { return Ok(()) };
        let Some(mut found) = self.steps.get(&(event.kind.clone(), event.schema)) else { return Ok(()) };
        let mut schema = event.schema;
        let failed = |schema: u16, why: String| Error::Upcast {
            position: event.position,
            kind: event.kind.clone(),
            schema,
            why,
        };
        let mut value = serde_json::from_str(text.get()).map_err(|error| failed(schema, Error::form(&error)))?;
        loop {
            let (to, step) = found;
            value = step(value).map_err(|why| failed(schema, why))?;
            schema = *to;
            match self.steps.get(&(event.kind.clone(), schema)) {
                Some(next) => found = next,
                None => break,
            }
        }
        let text: Box<RawValue> =
            serde_json::value::to_raw_value(&value).map_err(|error| failed(schema, Error::form(&error)))?;
        event.body = Body::Json(text);
        event.schema = schema;
        Ok(())
    }
}

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps: Vec<_> = self.steps.iter().map(|((kind, from), (to, _))| (kind.as_str(), *from, *to)).collect();
        steps.sort_unstable();
        f.debug_tuple("Upcasters").field(&steps).finish()
    }
}
