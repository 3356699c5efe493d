//! Stage 2: every value means something, and what will be shown for it.

use crate::normalise::not_understood;
use crate::validate::finding::{Finding, Severity, codes};
use crate::validate::pipeline::Looked;
use crate::value::FieldValue;

pub(crate) fn check(looked: &Looked<'_>) -> Vec<Finding> {
    let Some(schema) = looked.schema else { return Vec::new() };
    let mut findings = Vec::new();
    for (name, value) in looked.fields.iter() {
        let Some(spec) = schema.field(name.as_str()).filter(|spec| !spec.sensitive) else { continue };
        if let FieldValue::Opaque(text) = value {
            let Finding { code, severity, message, suggestion, .. } = not_understood(spec, text);
            let path = format!("{}.{name}", looked.candidate.name);
            findings.push(Finding { path, code, severity, message, suggestion });
            continue;
        }
        let typed = looked.candidate.spec.get(name.as_str());
        if let Some(FieldValue::Str(typed)) = typed {
            let shown = spec.print(value);
            if shown != *typed {
                let message = format!("the device will show {shown:?}");
                findings.push(looked.finding(codes::RESPELLED, Severity::Info, name.as_str(), message));
            }
        }
    }
    findings
}
