//! Functions that every template can call.
//!
//! Knows values and the date; does not know messages. `lipsum`, whose text is random, is not there.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use minijinja::{
    Environment, Error, ErrorKind, State, Value, functions,
    value::{Object, ObjectRepr, Rest, ValueKind, from_args},
};
use minijinja_contrib::globals::joiner;

use super::arguments::{Given, invalid, pairs, pay};
use crate::clock::{MAX_FIELD_BYTES, UtcTime};

/// What the library's `random` starts from at every rendering.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function("namespace", |args: Given| functions::namespace(Some(dict(&args.into_values())?.into())));
    environment.remove_global("debug");
    environment.add_global("dict", Value::from_object(Dict));
    environment.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(invalid("at least one item has to be provided")),
        false => Ok(Value::from_object(Cycler { items: items.to_vec(), at: AtomicUsize::new(0) })),
    });
    environment.add_function("joiner", joiner);
    environment.add_global("RAND_SEED", SEED);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(invalid(message)) });
    environment.add_function("strftime_now", |state: &mut State, format: String| {
        pay(state, format.len() + format.matches('%').count() * MAX_FIELD_BYTES)?;
        Ok::<_, Error>(UtcTime::now().strftime(&format))
    });
}

/// Python's `dict(mapping or pairs, **more)`.
fn dict(args: &[Value]) -> Result<Value, Error> {
    let mut all = Vec::new();
    for source in args {
        if source.kind() == ValueKind::Map {
            all.extend(pairs(source));
            continue;
        }
        for pair in source.try_iter()?.checked() {
            let pair: Vec<Value> = pair?.try_iter()?.collect();
            let [key, value] = <[Value; 2]>::try_from(pair).map_err(|_| invalid("dict: an item is not a pair"))?;
            all.push((key, value));
        }
    }
    Ok(Value::from_pairs(all))
}

/// The type `dict`.
#[derive(Debug)]
struct Dict;

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let by_place = args.iter().filter(|value| !value.is_kwargs()).count();
        if by_place > 1 { Err(Error::from(ErrorKind::TooManyArguments)) } else { dict(args) }
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        if method != "fromkeys" {
            return Err(Error::from(ErrorKind::UnknownMethod));
        }
        let (keys, value): (Value, Option<Value>) = from_args(args)?;
        let value = value.unwrap_or_else(|| Value::from(()));
        Ok(Value::from_pairs(keys.try_iter()?.map(|key| (key, value.clone()))))
    }
}

/// Gives its items one after the other, for ever.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let current = &self.items[self.at.load(Ordering::Relaxed) % self.items.len()];
        (key.as_str() == Some("current")).then(|| current.clone())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        let () = from_args(args)?;
        match method {
            "next" => {
                let at = self.at.fetch_add(1, Ordering::Relaxed);
                Ok(self.items[at % self.items.len()].clone())
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}
