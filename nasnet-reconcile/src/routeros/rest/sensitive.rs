//! Which fields hold secrets, and how their values are kept out of messages.

use crate::device::RawFields;

/// Names of fields that hold a secret in some menu; the vendor lists them as sensitive parameters.
const SENSITIVE: &[&str] = &[
    "authentication-password",
    "eap-password",
    "encryption-password",
    "ipsec-secret",
    "management-protection-key",
    "passphrase",
    "password",
    "preshared-key",
    "pre-shared-key",
    "private-key",
    "secret",
    "wpa-pre-shared-key",
    "wpa2-pre-shared-key",
];

/// Returns whether a field holds a secret.
pub(crate) fn is_sensitive(field: &str) -> bool {
    SENSITIVE.contains(&field) || field.ends_with("-password") || field.ends_with("-secret")
}

/// Removes the values of secret fields that were sent from what the device answered.
pub(super) fn redact(detail: &str, sent: &RawFields) -> String {
    sent.iter()
        .filter(|(field, value)| is_sensitive(field) && !value.is_empty())
        .fold(detail.to_owned(), |text, (_, value)| text.replace(value.as_str(), "***"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_the_device_repeats_is_removed() {
        let sent =
            RawFields::from([("private-key".to_owned(), "aGVsbG8=".to_owned()), ("name".to_owned(), "wg0".to_owned())]);
        assert_eq!(redact("invalid value aGVsbG8= for wg0", &sent), "invalid value *** for wg0");
    }
}
