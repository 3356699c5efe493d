//! How a column becomes a value: strictly, so that a wrong type is an error and never a guess.

use rusqlite::types::ValueRef;

/// A type a column can be read as. Texts and bytes can be borrowed from the row.
pub trait FromColumn<'r>: Sized + sealed::Sealed {
    /// Takes the value; the error names what is wanted.
    #[doc(hidden)]
    fn from_column(value: ValueRef<'r>) -> Result<Self, &'static str>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for i64 {}
    impl Sealed for f64 {}
    impl Sealed for bool {}
    impl Sealed for &str {}
    impl Sealed for String {}
    impl Sealed for &[u8] {}
    impl Sealed for Vec<u8> {}
    impl<const N: usize> Sealed for [u8; N] {}
    impl<T: Sealed> Sealed for Option<T> {}
}

impl FromColumn<'_> for i64 {
    fn from_column(value: ValueRef<'_>) -> Result<Self, &'static str> {
        if let ValueRef::Integer(number) = value { Ok(number) } else { Err("an integer") }
    }
}

impl FromColumn<'_> for f64 {
    fn from_column(value: ValueRef<'_>) -> Result<Self, &'static str> {
        if let ValueRef::Real(number) = value { Ok(number) } else { Err("a real number") }
    }
}

impl FromColumn<'_> for bool {
    fn from_column(value: ValueRef<'_>) -> Result<Self, &'static str> {
        match value {
            ValueRef::Integer(0) => Ok(false),
            ValueRef::Integer(1) => Ok(true),
            _ => Err("0 or 1"),
        }
    }
}

impl<'r> FromColumn<'r> for &'r str {
    fn from_column(value: ValueRef<'r>) -> Result<Self, &'static str> {
        let ValueRef::Text(text) = value else { return Err("a text") };
        std::str::from_utf8(text).map_err(|_| "a text of valid UTF-8")
    }
}

impl<'r> FromColumn<'r> for String {
    fn from_column(value: ValueRef<'r>) -> Result<Self, &'static str> {
        <&'r str>::from_column(value).map(str::to_owned)
    }
}

impl<'r> FromColumn<'r> for &'r [u8] {
    fn from_column(value: ValueRef<'r>) -> Result<Self, &'static str> {
        if let ValueRef::Blob(bytes) = value { Ok(bytes) } else { Err("bytes") }
    }
}

impl<'r> FromColumn<'r> for Vec<u8> {
    fn from_column(value: ValueRef<'r>) -> Result<Self, &'static str> {
        <&'r [u8]>::from_column(value).map(<[u8]>::to_vec)
    }
}

impl<'r, const N: usize> FromColumn<'r> for [u8; N] {
    fn from_column(value: ValueRef<'r>) -> Result<Self, &'static str> {
        <&'r [u8]>::from_column(value)?.try_into().map_err(|_| "bytes of another length")
    }
}

impl<'r, T: FromColumn<'r>> FromColumn<'r> for Option<T> {
    fn from_column(value: ValueRef<'r>) -> Result<Self, &'static str> {
        if matches!(value, ValueRef::Null) { Ok(None) } else { T::from_column(value).map(Some) }
    }
}
