//! The machine that carries out a pickle's program on an arena of values.
//!
//! Names of classes and functions are looked up in the list of its [`Content`] and nowhere else. Invariant: every instruction makes at most
//! as much as it reads, but for copies of lists, which are counted.

use std::collections::HashMap;

use super::{
    content::{Content, ENCODING},
    value::{Id, PickleError, Value},
};
use crate::shown::shown;

/// Most values in one.
const MAX_VALUES: usize = 1 << 20;

/// The state of a pickle's program.
pub(super) struct Machine<'a> {
    content: Content,
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Parts that were copied, not moved: a list may be given to any number of calls.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// Before the first instruction of `bytes`.
    pub(super) fn new(bytes: &'a [u8], content: Content) -> Self {
        let (values, stack, marks, memo) = Default::default();
        Self { content, bytes, at: 0, values, stack, marks, memo, copied: 0 }
    }

    /// Carries out everything up to the end; returns what is left, the values made, and how many bytes were read.
    pub(super) fn run(mut self) -> Result<(Id, Vec<Value>, usize), PickleError> {
        loop {
            let at = self.at;
            let opcode = self.byte()?;
            if opcode == b'.' {
                return Ok((self.pop()?, self.values, self.at)); // STOP
            }
            match self.value(opcode)? {
                Some(value) => self.push(value)?,
                None => self.carry_out(opcode, at)?,
            }
        }
    }

    /// Carries out an instruction that makes a value, and returns it; none for any other.
    fn value(&mut self, opcode: u8) -> Result<Option<Value>, PickleError> {
        Ok(Some(match opcode {
            b'N' => Value::None,
            b'\x88' => Value::Bool(true),
            b'\x89' => Value::Bool(false),
            b'K' => Value::Int(self.number(1)? as i64), // BININT1
            b'M' => Value::Int(self.number(2)? as i64), // BININT2
            b'J' => whole_number(self.take(4)?),        // BININT
            b'\x8a' => whole_number(self.counted(1)?),  // LONG1
            b'G' => Value::Float(f64::from_bits(self.number(8)?.swap_bytes())), // BINFLOAT
            // Python 2 wrote names as byte strings; all of torch's are ASCII.
            b'U' | b'\x8c' => text(self.counted(1)?), // SHORT_BINSTRING, SHORT_BINUNICODE
            b'T' | b'X' => text(self.counted(4)?),    // BINSTRING, BINUNICODE
            b'\x8d' => text(self.counted(8)?),        // BINUNICODE8
            b'C' => bytes(self.counted(1)?),          // SHORT_BINBYTES
            b'B' => bytes(self.counted(4)?),          // BINBYTES
            b'\x8e' | b'\x96' => bytes(self.counted(8)?), // BINBYTES8, BYTEARRAY8
            b')' => Value::Tuple(Vec::new()),
            b'\x85'..=b'\x87' => Value::Tuple(self.pop_many(usize::from(opcode - 0x84))?), // TUPLE1, TUPLE2, TUPLE3
            b't' => Value::Tuple(self.pop_to_mark()?),                                     // TUPLE
            b']' | b'\x8f' => Value::List(Vec::new()),                                     // EMPTY_LIST, EMPTY_SET
            b'l' | b'\x91' => Value::List(self.pop_to_mark()?),                            // LIST, FROZENSET
            b'}' => Value::Dict(Vec::new()),
            b'Q' => Value::Persistent(self.pop()?), // BINPERSID
            _ => return Ok(None),
        }))
    }

    /// Carries out an instruction that makes no value by itself.
    fn carry_out(&mut self, opcode: u8, at: usize) -> Result<(), PickleError> {
        match opcode {
            b'\x80' => drop(self.byte()?),             // PROTO
            b'\x95' => drop(self.take(8)?),            // FRAME
            b'(' => self.marks.push(self.stack.len()), // MARK
            b'0' => drop(self.pop()?),                 // POP
            b'1' => drop(self.pop_to_mark()?),         // POP_MARK
            b'2' => self.stack.push(self.top()?),      // DUP
            // BUILD: attributes of an object, which are none of a tensor's or dictionary's content, and all of an encoding's.
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                if let Value::Call(class, _) = self.values[object as usize]
                    && self.values[class as usize] == Value::Global(ENCODING)
                {
                    self.values[object as usize] = Value::Object(state);
                }
            }
            // APPEND; APPENDS, ADDITEMS
            b'a' | b'e' | b'\x90' => {
                let items = if opcode == b'a' { self.pop_many(1)? } else { self.pop_to_mark()? };
                self.extend(items)?;
            }
            b'd' => {
                let items = self.pop_to_mark()?; // DICT
                self.push(Value::Dict(Vec::new()))?;
                self.set_items(&items)?;
            }
            // SETITEM, SETITEMS
            b's' | b'u' => {
                let items = if opcode == b's' { self.pop_many(2)? } else { self.pop_to_mark()? };
                self.set_items(&items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?); // GLOBAL
                self.push_global(&module, &name)?;
            }
            b'\x93' => {
                let names = self.pop_many(2)?; // STACK_GLOBAL
                let text = |id: Id| match &self.values[id as usize] {
                    Value::Text(text) => Ok(text.clone()),
                    _ => Err(self.broken("a name is no text")),
                };
                let (module, name) = (text(names[0])?, text(names[1])?);
                self.push_global(&module, &name)?;
            }
            b'R' | b'\x81' | b'\x92' => {
                let parts = self.pop_many(if opcode == b'\x92' { 3 } else { 2 })?; // REDUCE, NEWOBJ, NEWOBJ_EX
                self.call(parts[0], parts[1])?;
            }
            b'q' | b'r' | b'\x94' => {
                let index = match opcode {
                    b'q' => self.number(1)?,     // BINPUT
                    b'r' => self.number(4)?,     // LONG_BINPUT
                    _ => self.memo.len() as u64, // MEMOIZE
                };
                let top = self.top()?;
                self.memo.insert(index, top);
            }
            // BINGET, LONG_BINGET
            b'h' | b'j' => {
                let index = self.number(if opcode == b'h' { 1 } else { 4 })?;
                let made = self.memo.get(&index).copied();
                self.stack.push(made.ok_or(self.broken("a value is used before it is made"))?);
            }
            opcode => return Err(PickleError::Opcode { opcode, at }),
        }
        Ok(())
    }

    fn broken(&self, what: &'static str) -> PickleError {
        PickleError::Broken { at: self.at, what }
    }

    fn take(&mut self, len: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(PickleError::Truncated(self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A number of so many bytes, the least first.
    fn number(&mut self, len: usize) -> Result<u64, PickleError> {
        Ok(self.take(len)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// As many bytes as a number of so many bytes before them says.
    fn counted(&mut self, len: usize) -> Result<&[u8], PickleError> {
        // What no file can hold is cut short anyway.
        let count = usize::try_from(self.number(len)?).unwrap_or(usize::MAX);
        self.take(count)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or(PickleError::Truncated(self.bytes.len()))?;
        let line = String::from_utf8_lossy(&rest[..len]).into_owned();
        self.at += len + 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) -> Result<(), PickleError> {
        if self.values.len() == MAX_VALUES {
            return Err(PickleError::TooLarge { limit: MAX_VALUES, unit: "values" });
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let global = format!("{module}.{name}");
        match self.content.names().iter().find(|allowed| **allowed == global) {
            Some(allowed) => self.push(Value::Global(allowed)),
            None => Err(PickleError::Refused { name: shown(&global), content: self.content }),
        }
    }

    fn top(&self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or(self.broken("the stack is empty"))
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Id>, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() - floor < n {
            return Err(self.broken("the stack is empty"));
        }
        Ok(self.stack.split_off(self.stack.len() - n))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or(self.broken("there is no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let list = self.top()?;
        match &mut self.values[list as usize] {
            Value::List(list) => list.extend(items),
            _ => return Err(self.broken("what is appended to is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let dict = self.top()?;
        let (pairs, odd) = items.as_chunks::<2>();
        match &mut self.values[dict as usize] {
            Value::Dict(dict) if odd.is_empty() => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err(self.broken("what is set is no pair in a dictionary")),
        }
        Ok(())
    }

    fn call(&mut self, function: Id, arguments: Id) -> Result<(), PickleError> {
        let Value::Tuple(given) = &self.values[arguments as usize] else {
            return Err(self.broken("arguments are no tuple"));
        };
        match &self.values[function as usize] {
            // Dictionaries keep their order here anyway; Python 2 gave the pairs at once.
            Value::Global("collections.OrderedDict") => {
                let pairs = given.first().map_or(Ok(Vec::new()), |&pairs| self.pairs(pairs))?;
                self.copied += pairs.len();
                self.push(Value::Dict(pairs))
            }
            Value::Global(_) => self.push(Value::Call(function, arguments)),
            _ => Err(self.broken("what is called is no function")),
        }
    }

    /// `[(key, value), …]`, also with lists for tuples.
    fn pairs(&self, list: Id) -> Result<Vec<(Id, Id)>, PickleError> {
        let items = |id: Id| match &self.values[id as usize] {
            Value::List(items) | Value::Tuple(items) => Ok(items.as_slice()),
            _ => Err(self.broken("an ordered dictionary is not made of pairs")),
        };
        let pair = |&id: &Id| match items(id)? {
            &[key, value] => Ok((key, value)),
            _ => Err(self.broken("an ordered dictionary is not made of pairs")),
        };
        let list = items(list)?;
        if list.len() > MAX_VALUES - self.copied {
            return Err(PickleError::TooLarge { limit: MAX_VALUES, unit: "values" });
        }
        list.iter().map(pair).collect()
    }
}

fn text(bytes: &[u8]) -> Value {
    Value::Text(String::from_utf8_lossy(bytes).into_owned())
}

fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_owned())
}

/// Little-endian two's complement.
fn whole_number(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Opaque;
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut padded = [if negative { 0xff } else { 0 }; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(padded))
}
