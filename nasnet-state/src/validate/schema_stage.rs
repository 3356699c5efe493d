//! Stage 1: names, types, presence and access.

use crate::normalise::expected;
use crate::schema::{FieldSpec, UnknownFields};
use crate::validate::finding::{Finding, Severity, codes, nearest};
use crate::validate::pipeline::Looked;
use crate::value::FieldValue;

pub(crate) fn check(looked: &Looked<'_>) -> Vec<Finding> {
    let Some(schema) = looked.schema else {
        let message = format!("kind {} is not known", looked.candidate.kind);
        return vec![looked.finding(codes::UNKNOWN_KIND, Severity::Error, "", message)];
    };
    let mut findings = Vec::new();
    for (name, value) in looked.fields.iter() {
        match schema.field(name.as_str()) {
            Some(spec) => findings.extend(check_field(looked, spec, value)),
            None if schema.unknown == UnknownFields::Intent => {}
            None => {
                let suggestion = nearest(name.as_str(), schema.fields.iter().map(|spec| spec.name));
                let message = format!("{} has no field {name}", schema.kind());
                findings.push(
                    looked.finding(codes::UNKNOWN_FIELD, Severity::Error, name.as_str(), message).suggest(suggestion),
                );
            }
        }
    }
    for spec in schema.fields.iter().filter(|spec| spec.required && !looked.fields.contains(spec.name)) {
        let message = format!("{} needs a {}", schema.kind(), spec.name);
        findings.push(looked.finding(codes::MISSING_FIELD, Severity::Error, spec.name, message));
    }
    findings
}

fn check_field(looked: &Looked<'_>, spec: &FieldSpec, value: &FieldValue) -> Option<Finding> {
    let finding = |code, message| Some(looked.finding(code, Severity::Error, spec.name, message));
    if !spec.is_settable() {
        return finding(codes::READ_ONLY_FIELD, "only the device sets this field".to_owned());
    }
    match (spec.sensitive, value) {
        (true, FieldValue::Secret(_)) => None,
        (true, _) => finding(codes::UNSEALED_SECRET, "a secret must be sealed before it is stored".to_owned()),
        // Text that is no value is the next stage's to report.
        (false, FieldValue::Opaque(_)) => None,
        (false, FieldValue::Secret(_)) => finding(codes::WRONG_TYPE, "the field holds no secret".to_owned()),
        (false, value) if spec.parse(&spec.print(value)).as_ref() == Some(value) => None,
        (false, _) => finding(codes::WRONG_TYPE, format!("the value is not {}", expected(&spec.ty))),
    }
}
