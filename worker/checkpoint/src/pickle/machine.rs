//! The machine that carries out a pickle's program on an arena of values.
//!
//! Names of classes and functions are looked up in the list below and nowhere else. Invariant: every instruction makes at most
//! as much as it reads, but for copies of lists, which are counted.

use std::collections::HashMap;

use super::value::{Id, PickleError, Value};
use crate::shown::shown;

/// Most values in one.
const MAX_VALUES: usize = 1 << 20;

/// Names that a checkpoint of torch may hold. All are data to us; `*` ends a prefix.
const ALLOWED: [&str; 22] = [
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch.Size",
    "torch.device",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.DoubleStorage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
];

/// The state of a pickle's program.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Parts that were copied, not moved: a list may be given to any number of calls.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// Before the first instruction of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), copied: 0 }
    }

    /// The values made, and how many bytes were read.
    pub(super) fn into_parts(self) -> (Vec<Value>, usize) {
        (self.values, self.at)
    }

    /// Carries out everything up to the end; returns what is left.
    pub(super) fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let at = self.at;
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop(); // STOP
            }
            if let Some(value) = self.value(opcode, at)? {
                self.push(value)?;
            }
        }
    }

    /// Carries out one instruction, and returns the value that it makes.
    fn value(&mut self, opcode: u8, at: usize) -> Result<Option<Value>, PickleError> {
        Ok(Some(match opcode {
            b'N' => Value::None,
            b'\x88' => Value::Bool(true),
            b'\x89' => Value::Bool(false),
            b'K' => Value::Int(self.byte()?.into()), // BININT1
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()), // BININT2
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()), // BININT
            b'\x8a' => {
                let len = usize::from(self.byte()?); // LONG1
                whole_number(self.take(len)?)
            }
            b'G' => Value::Float(f64::from_be_bytes(self.array()?)), // BINFLOAT
            // SHORT_BINSTRING, SHORT_BINUNICODE; BINSTRING, BINUNICODE; BINUNICODE8
            b'U' | b'\x8c' | b'T' | b'X' | b'\x8d' => {
                let len = self.length(opcode)?;
                // Python 2 wrote names as byte strings; all of torch's are ASCII.
                Value::Text(String::from_utf8_lossy(self.take(len)?).into_owned())
            }
            // SHORT_BINBYTES; BINBYTES; BINBYTES8, BYTEARRAY8
            b'C' | b'B' | b'\x8e' | b'\x96' => {
                let len = self.length(opcode)?;
                self.take(len)?;
                Value::Opaque
            }
            b')' => Value::Tuple(Vec::new()),
            b'\x85'..=b'\x87' => Value::Tuple(self.pop_many(usize::from(opcode - 0x84))?), // TUPLE1, TUPLE2, TUPLE3
            b't' => Value::Tuple(self.pop_to_mark()?),                                     // TUPLE
            b']' | b'\x8f' => Value::List(Vec::new()),                                     // EMPTY_LIST, EMPTY_SET
            b'l' | b'\x91' => Value::List(self.pop_to_mark()?),                            // LIST, FROZENSET
            b'}' => Value::Dict(Vec::new()),
            b'Q' => Value::Persistent(self.pop()?), // BINPERSID
            _ => {
                self.carry_out(opcode, at)?;
                return Ok(None);
            }
        }))
    }

    /// Carries out an instruction that makes no value by itself.
    fn carry_out(&mut self, opcode: u8, at: usize) -> Result<(), PickleError> {
        match opcode {
            b'\x80' => drop(self.byte()?),             // PROTO
            b'\x95' => drop(self.take(8)?),            // FRAME
            b'(' => self.marks.push(self.stack.len()), // MARK
            // BUILD: attributes of an object, which are none of a tensor's or dictionary's content.
            b'0' | b'b' => drop(self.pop()?),     // POP
            b'1' => drop(self.pop_to_mark()?),    // POP_MARK
            b'2' => self.stack.push(self.top()?), // DUP
            b'a' => {
                let item = self.pop()?; // APPEND
                self.extend(vec![item])?;
            }
            b'e' | b'\x90' => {
                let items = self.pop_to_mark()?; // APPENDS, ADDITEMS
                self.extend(items)?;
            }
            b'd' => {
                let items = self.pop_to_mark()?; // DICT
                self.push(Value::Dict(Vec::new()))?;
                self.set_items(&items)?;
            }
            b's' => {
                let items = self.pop_many(2)?; // SETITEM
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?; // SETITEMS
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
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' | b'r' | b'\x94' => {
                let index = if opcode == b'\x94' { self.memo.len() as u32 } else { self.index(opcode == b'r')? };
                self.put(index)?;
            }
            // BINGET, LONG_BINGET
            b'h' | b'j' => {
                let index = self.index(opcode == b'j')?;
                self.fetch(index)?;
            }
            opcode => return Err(PickleError::Opcode { opcode, at }),
        }
        Ok(())
    }

    /// How long the text or the bytes are that follow an instruction: in one, four or eight bytes. What no file can hold is cut
    /// short anyway.
    fn length(&mut self, opcode: u8) -> Result<usize, PickleError> {
        Ok(match opcode {
            b'U' | b'\x8c' | b'C' => self.byte()?.into(),
            b'T' | b'X' | b'B' => u32::from_le_bytes(self.array()?) as usize,
            _ => usize::try_from(u64::from_le_bytes(self.array()?)).unwrap_or(usize::MAX),
        })
    }

    /// A place in the memo.
    fn index(&mut self, is_long: bool) -> Result<u32, PickleError> {
        if is_long { Ok(u32::from_le_bytes(self.array()?)) } else { Ok(self.byte()?.into()) }
    }

    fn broken(&self, what: &'static str) -> PickleError {
        PickleError::Broken { at: self.at, what }
    }

    fn take(&mut self, len: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(PickleError::Truncated { at: self.at })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        Ok(self.take(N)?.try_into().expect("as many bytes as asked for"))
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or(PickleError::Truncated { at: self.bytes.len() })?;
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
        match ALLOWED.iter().find(|allowed| **allowed == global) {
            Some(allowed) => self.push(Value::Global(allowed)),
            None => Err(PickleError::Refused { global: shown(&global) }),
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

    fn put(&mut self, index: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn fetch(&mut self, index: u32) -> Result<(), PickleError> {
        let id = *self.memo.get(&index).ok_or(self.broken("a value is used before it is made"))?;
        self.stack.push(id);
        Ok(())
    }
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
