//! Arguments of Python's functions: by place or by name. Knows values; does not know what is done with them.

use std::fmt::{self, Write as _};

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Rest, ValueOrKwargs, from_args},
};

/// Arguments as the library hands them over, those by name last.
pub(super) type Given = Rest<ValueOrKwargs>;

/// Arguments in the order of their names; undefined where none is given.
pub(super) fn arguments<const N: usize>(names: [&str; N], given: &[Value]) -> Result<[Value; N], Error> {
    let mut values = [const { Value::UNDEFINED }; N];
    let (by_place, by_name): (&[Value], Kwargs) = from_args(given)?;
    if by_place.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    values[..by_place.len()].clone_from_slice(by_place);
    for (value, name) in values.iter_mut().zip(names).skip(by_place.len()) {
        if by_name.has(name) {
            *value = by_name.get(name)?;
        }
    }
    by_name.assert_all_used()?;
    Ok(values)
}

/// An argument that has to be a string.
pub(super) fn text(value: &Value) -> Result<&str, Error> {
    value.as_str().ok_or_else(|| invalid(format!("expected a string, got {}", value.kind())))
}

/// What Python's `str` makes of a value.
pub(super) fn string(state: &State, value: &Value) -> Result<String, Error> {
    value.as_str().map_or_else(|| written(state, format_args!("{value}")), |text| Ok(text.to_owned()))
}

/// Text of a value that may be far longer than what it is made of, like a list of one list many times: paid for piece by
/// piece, while it is written.
pub(super) fn written(state: &State, value: fmt::Arguments<'_>) -> Result<String, Error> {
    struct Paid<'a, 't, 'e>(&'a State<'t, 'e>, String);
    impl fmt::Write for Paid<'_, '_, '_> {
        fn write_str(&mut self, piece: &str) -> fmt::Result {
            pay(self.0, piece.len()).map_err(|_| fmt::Error)?;
            self.1.push_str(piece);
            Ok(())
        }
    }
    let mut paid = Paid(state, String::new());
    paid.write_fmt(value).map_err(|_| Error::from(ErrorKind::OutOfFuel))?;
    Ok(paid.1)
}

/// An argument that is there and not `None`.
pub(super) fn given(value: &Value) -> Option<&Value> {
    Some(value).filter(|value| !value.is_undefined() && !value.is_none())
}

/// An argument, or this where there is none.
pub(super) fn value_or(value: Value, default: impl Into<Value>) -> Value {
    if value.is_undefined() { default.into() } else { value }
}

/// A whole number, or this one where none is given.
pub(super) fn integer_or(value: &Value, default: i64) -> Result<i64, Error> {
    given(value).map_or(Ok(default), |value| i64::try_from(value.clone()))
}

/// Keys and values of a mapping; nothing of any other value.
pub(super) fn pairs(value: &Value) -> impl Iterator<Item = (Value, Value)> {
    value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten()
}

/// Pays for bytes that are about to be made.
pub(super) fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    /// What a unit of fuel buys.
    const UNIT_BYTES: u64 = 64;
    state.consume_fuel((bytes as u64).div_ceil(UNIT_BYTES))
}

pub(super) fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}
