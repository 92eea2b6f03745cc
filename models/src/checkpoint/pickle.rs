//! Pickle (protocols 0 to 5) as data.
//!
//! The opcodes are followed and build inert values; nothing named in the file is looked up or called. What would be a
//! call is an [`Object`] that remembers its class and arguments. Values lie in one list and refer to each other by
//! number, so that neither cycles nor depth can hurt, and a memo costs nothing: time and memory are in proportion to
//! the pickle's length.

use std::borrow::Cow;
use std::collections::HashMap;

/// A value's number in [`Pickle::values`].
pub(super) type Id = u32;

/// Values in one pickle, at most. Whole training states have some ten thousand.
const MAX_VALUES: usize = 1 << 22;

#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, little-endian, as the file has it.
    Long(&'a [u8]),
    Float(f64),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by module and name.
    Global(Box<(Cow<'a, str>, Cow<'a, str>)>),
    Object(Box<Object>),
    /// What the file's owner keeps elsewhere under this key: a storage.
    Persistent(Id),
}

/// What calling `class` with `args` would make, and what was then put into it.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) class: Id,
    pub(super) args: Id,
    pub(super) items: Vec<(Id, Id)>,
    pub(super) elements: Vec<Id>,
    pub(super) state: Option<Id>,
}

/// A pickle that was followed to its end.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
    /// Bytes it takes.
    pub(super) len: usize,
}

/// Where and why a pickle could not be followed.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) at: usize,
    pub(super) why: String,
}

impl<'a> Pickle<'a> {
    /// Follows the pickle at the front of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Broken> {
        let mut machine =
            Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { values: machine.values, root, len: machine.at }),
                Err(why) => return Err(Broken { at, why }),
            }
        }
    }

    /// The value that the pickle stands for.
    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        // Ids are made by `Machine::push` and stay valid.
        &self.values[id as usize]
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            // Python 2 pickles its strings as bytes.
            Value::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match *self.get(id) {
            Value::Int(n) => Some(n),
            Value::Bool(b) => Some(b.into()),
            _ => None,
        }
    }

    /// A tuple's or list's members.
    pub(super) fn members(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(ids) | Value::List(ids) => Some(ids),
            _ => None,
        }
    }

    /// Module and name of a global.
    pub(super) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id) {
            Value::Global(names) => Some((&names.0, &names.1)),
            _ => None,
        }
    }

    /// Class and arguments of an object.
    pub(super) fn call(&self, id: Id) -> Option<((&str, &str), &[Id])> {
        match self.get(id) {
            Value::Object(object) => Some((self.global(object.class)?, self.members(object.args)?)),
            _ => None,
        }
    }

    /// Every value of the pickle, in no order that matters.
    pub(super) fn values(&self) -> &[Value<'a>] {
        &self.values
    }

    /// Keys and values of a dict or of an object that acts as one (OrderedDict, CfgNode). No more than the pickle spells out:
    /// what many refer to is not copied for each of them.
    pub(super) fn items(&self, id: Id) -> Option<impl Iterator<Item = (Id, Id)> + use<'_, 'a>> {
        let pair = |id: &Id| match self.members(*id) {
            Some(&[key, value]) => Some((key, value)),
            _ => None,
        };
        let (dict, list, own): (&[_], &[_], &[_]) = match self.get(id) {
            Value::Dict(items) => (items, &[], &[]),
            Value::Object(object) => {
                // Python 2 hands an OrderedDict its pairs, protocols 0 and 1 hand a dict's subclass the dict.
                let args = self.members(object.args).unwrap_or_default();
                let given = args.iter().find_map(|arg| match self.get(*arg) {
                    Value::Dict(items) => Some((&items[..], &[][..])),
                    Value::List(pairs) if pairs.first().is_some_and(|p| pair(p).is_some()) => Some((&[], &pairs[..])),
                    _ => None,
                });
                let ((dict, list), own) = (given.unwrap_or_default(), &object.items[..]);
                let some = !(dict.is_empty() && list.is_empty() && own.is_empty());
                if !some && self.global(object.class).is_none_or(|(_, name)| name != "OrderedDict") {
                    return None;
                }
                (dict, list, own)
            }
            _ => return None,
        };
        Some(dict.iter().copied().chain(list.iter().map_while(pair)).chain(own.iter().copied()))
    }

    /// A value in words, for messages.
    pub(super) fn describe(&self, id: Id) -> String {
        match self.get(id) {
            Value::None => "None".into(),
            Value::Bool(b) => format!("{b}"),
            Value::Int(n) => format!("{n}"),
            Value::Long(_) => "a long integer".into(),
            Value::Float(v) => format!("{v}"),
            Value::Text(t) if t.len() < 80 => format!("{t:?}"),
            Value::Text(_) => "a text".into(),
            Value::Bytes(b) => format!("{} bytes", b.len()),
            Value::Tuple(t) => format!("a tuple of {}", t.len()),
            Value::List(l) => format!("a list of {}", l.len()),
            Value::Set(s) => format!("a set of {}", s.len()),
            Value::Dict(d) => format!("a dict of {}", d.len()),
            Value::Global(names) => format!("{}.{}", names.0, names.1),
            Value::Object(object) => match self.global(object.class) {
                Some((module, name)) => format!("a {module}.{name}"),
                None => "an object".into(),
            },
            Value::Persistent(_) => "a storage".into(),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// One opcode. The result, if it was STOP.
    fn step(&mut self) -> Step<Option<Id>> {
        match self.byte()? {
            0x80 => match self.byte()? {
                0..=5 => {}
                n => return Err(format!("protocol {n}, only 0 to 5 are known")),
            },
            // FRAME: a hint about the bytes that follow.
            0x95 => _ = self.number::<8>()?,
            b'.' => return self.pop().map(Some),

            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.marks.last() == Some(&self.stack.len()) => _ = self.marks.pop(),
            b'0' => _ = self.pop()?,
            b'1' => _ = self.since_mark()?,
            b'2' => {
                let top = self.top()?;
                self.again(top)?;
            }

            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => self.push_int::<1>()?,
            b'M' => self.push_int::<2>()?,
            b'J' => {
                let n = self.array::<4>().map(i32::from_le_bytes)?;
                self.push(Value::Int(n.into()))?;
            }
            0x8a => self.long::<1>()?,
            0x8b => self.long::<4>()?,
            b'I' => {
                let value = match self.line()? {
                    b"00" => Value::Bool(false),
                    b"01" => Value::Bool(true),
                    digits => Value::Int(parse(digits)?),
                };
                self.push(value)?;
            }
            b'L' => {
                let digits = self.line()?;
                let digits = digits.strip_suffix(b"L").unwrap_or(digits);
                // What has more than 64 bits stays in words: nothing here counts that far.
                let value = parse(digits).map_or_else(|_| Value::Bytes(digits.into()), Value::Int);
                self.push(value)?;
            }
            b'F' => {
                let v = parse(self.line()?)?;
                self.push(Value::Float(v))?;
            }
            b'G' => {
                let v = self.array().map(f64::from_be_bytes)?;
                self.push(Value::Float(v))?;
            }

            b'X' => self.push_text::<4>()?,
            0x8c => self.push_text::<1>()?,
            0x8d => self.push_text::<8>()?,
            b'B' | b'T' => self.push_bytes::<4>()?,
            b'C' | b'U' => self.push_bytes::<1>()?,
            0x8e | 0x96 => self.push_bytes::<8>()?,
            b'V' => {
                let text = unescape(self.line()?, false);
                let text = String::from_utf8_lossy(&text).into_owned();
                self.push(Value::Text(text.into()))?;
            }
            b'S' => {
                let line = self.line()?;
                let quoted = match line {
                    [q @ (b'\'' | b'"'), text @ .., p] if q == p => text,
                    _ => return Err("a string without quotes".into()),
                };
                self.push(Value::Bytes(unescape(quoted, true)))?;
            }

            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let members = self.since_mark()?;
                self.push(Value::Tuple(members))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'l' => {
                let members = self.since_mark()?;
                self.push(Value::List(members))?;
            }
            0x8f => self.push(Value::Set(Vec::new()))?,
            0x91 => {
                let members = self.since_mark()?;
                self.push(Value::Set(members))?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = pairs(&self.since_mark()?)?;
                self.push(Value::Dict(items))?;
            }
            b'a' => {
                let member = self.pop()?;
                self.extend(vec![member])?;
            }
            b'e' | 0x90 => {
                let members = self.since_mark()?;
                self.extend(members)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![(key, value)])?;
            }
            b'u' => {
                let items = pairs(&self.since_mark()?)?;
                self.set_items(items)?;
            }

            b'p' => {
                let key = parse(self.line()?)?;
                self.put(key)?;
            }
            b'q' => {
                let key = self.number::<1>()?;
                self.put(key)?;
            }
            b'r' => {
                let key = self.number::<4>()?;
                self.put(key)?;
            }
            0x94 => {
                let key = self.memo.len() as u64;
                self.put(key)?;
            }
            b'g' => {
                let key = parse(self.line()?)?;
                self.recall(key)?;
            }
            b'h' => {
                let key = self.number::<1>()?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.number::<4>()?;
                self.recall(key)?;
            }

            b'c' => self.global()?,
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let names = match (self.value(module), self.value(name)) {
                    (Value::Text(module), Value::Text(name)) => (module.clone(), name.clone()),
                    _ => return Err("a global whose names are no texts".into()),
                };
                self.push(Value::Global(Box::new(names)))?;
            }
            b'R' | 0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                self.object(class, args)?;
            }
            0x92 => {
                let (_keywords, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.object(class, args)?;
            }
            b'i' => {
                self.global()?;
                let class = self.pop()?;
                let args = self.since_mark()?;
                self.push(Value::Tuple(args))?;
                let args = self.pop()?;
                self.object(class, args)?;
            }
            b'o' => {
                let mut args = self.since_mark()?;
                if args.is_empty() {
                    return Err("an object without a class".into());
                }
                let class = args.remove(0);
                self.push(Value::Tuple(args))?;
                let args = self.pop()?;
                self.object(class, args)?;
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                if let Value::Object(object) = self.value_mut(object) {
                    object.state = Some(state);
                }
            }
            b'P' => {
                let key = String::from_utf8_lossy(self.line()?);
                self.push(Value::Text(key))?;
                let key = self.pop()?;
                self.push(Value::Persistent(key))?;
            }
            b'Q' => {
                let key = self.pop()?;
                self.push(Value::Persistent(key))?;
            }
            0x82..=0x84 => return Err("an extension code, whose meaning is not in the file".into()),
            0x97 | 0x98 => return Err("an out-of-band buffer, which is not in the file".into()),
            other => return Err(format!("unknown opcode {other:#04x}")),
        }
        Ok(None)
    }

    fn take(&mut self, len: u64) -> Step<&'a [u8]> {
        let left = &self.bytes[self.at..];
        match usize::try_from(len).ok().and_then(|len| left.get(..len)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(format!("{len} bytes are needed, {} are left", left.len())),
        }
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn byte(&mut self) -> Step<u8> {
        self.array::<1>().map(|[b]| b)
    }

    /// An unsigned little-endian number of N bytes.
    fn number<const N: usize>(&mut self) -> Step<u64> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.array::<N>()?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Up to the next line feed, which is taken too.
    fn line(&mut self) -> Step<&'a [u8]> {
        let left = &self.bytes[self.at..];
        let len = left.iter().position(|b| *b == b'\n').ok_or("a line without end")?;
        self.at += len + 1;
        Ok(left[..len].strip_suffix(b"\r").unwrap_or(&left[..len]))
    }

    fn push(&mut self, value: Value<'a>) -> Step<()> {
        if self.values.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// Puts a value that is there already on the stack.
    fn again(&mut self, id: Id) -> Step<()> {
        if self.stack.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values on the stack"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn push_int<const N: usize>(&mut self) -> Step<()> {
        let n = self.number::<N>()?;
        self.push(Value::Int(n as i64))
    }

    fn push_text<const N: usize>(&mut self) -> Step<()> {
        let len = self.number::<N>()?;
        let bytes = self.take(len)?;
        // Python also writes lone surrogates, which are no UTF-8: such a text stays bytes.
        let text = std::str::from_utf8(bytes).map(|t| Value::Text(t.into()));
        self.push(text.unwrap_or(Value::Bytes(bytes.into())))
    }

    fn push_bytes<const N: usize>(&mut self) -> Step<()> {
        let len = self.number::<N>()?;
        let bytes = self.take(len)?;
        self.push(Value::Bytes(bytes.into()))
    }

    /// A two's complement number whose length comes in N bytes.
    fn long<const N: usize>(&mut self) -> Step<()> {
        let len = self.number::<N>()?;
        let bytes = self.take(len)?;
        if bytes.len() > 8 {
            return self.push(Value::Long(bytes));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut full = [if negative { 0xff } else { 0 }; 8];
        full[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(full)))
    }

    /// Lowest height that may be popped from: what lies under the last mark is out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Id> {
        if self.stack.len() > self.floor() { self.stack.pop() } else { None }.ok_or_else(|| "an empty stack".into())
    }

    fn top(&self) -> Step<Id> {
        if self.stack.len() > self.floor() { self.stack.last().copied() } else { None }
            .ok_or_else(|| "an empty stack".into())
    }

    fn since_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, len: usize) -> Step<()> {
        let from = self.stack.len().checked_sub(len).filter(|from| *from >= self.floor()).ok_or("an empty stack")?;
        let members = self.stack.split_off(from);
        self.push(Value::Tuple(members))
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn value_mut(&mut self, id: Id) -> &mut Value<'a> {
        &mut self.values[id as usize]
    }

    fn extend(&mut self, members: Vec<Id>) -> Step<()> {
        let into = self.top()?;
        match self.value_mut(into) {
            Value::List(list) | Value::Set(list) => list.extend(members),
            Value::Object(object) => object.elements.extend(members),
            _ => return Err("members for something that is no list or set".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<(Id, Id)>) -> Step<()> {
        let into = self.top()?;
        match self.value_mut(into) {
            Value::Dict(dict) => dict.extend(items),
            Value::Object(object) => object.items.extend(items),
            _ => return Err("items for something that is no dict".into()),
        }
        Ok(())
    }

    fn put(&mut self, key: u64) -> Step<()> {
        let top = self.top()?;
        if self.memo.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} memos"));
        }
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Step<()> {
        let id = *self.memo.get(&key).ok_or_else(|| format!("memo {key} is empty"))?;
        self.again(id)
    }

    fn global(&mut self) -> Step<()> {
        let names = (String::from_utf8_lossy(self.line()?), String::from_utf8_lossy(self.line()?));
        self.push(Value::Global(Box::new(names)))
    }

    fn object(&mut self, class: Id, args: Id) -> Step<()> {
        let object = Object { class, args, items: Vec::new(), elements: Vec::new(), state: None };
        self.push(Value::Object(Box::new(object)))
    }
}

/// A number in words.
fn parse<T: std::str::FromStr>(digits: &[u8]) -> Step<T> {
    let text = std::str::from_utf8(digits).unwrap_or_default();
    text.trim().parse().map_err(|_| format!("no number: {}", digits[..digits.len().min(20)].escape_ascii()))
}

fn pairs(ids: &[Id]) -> Step<Vec<(Id, Id)>> {
    let (pairs, rest) = ids.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    } else {
        Err("a key without value".into())
    }
}

/// Takes the escapes of protocol 0 out: `\xhh`, `\n`, `\\` and the like in byte strings, `\uhhhh` and `\Uhhhhhhhh` in
/// texts (whose other bytes are Latin-1; the result is UTF-8).
fn unescape(text: &[u8], bytes: bool) -> Cow<'_, [u8]> {
    if text.is_ascii() && !text.contains(&b'\\') {
        return text.into();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut push = |code: u32| match char::from_u32(code) {
        Some(_) if bytes => out.push(code as u8),
        c => out.extend_from_slice(c.unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut [0; 4]).as_bytes()),
    };
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = |len: usize| {
            let digits = std::str::from_utf8(tail.get(1..=len)?).ok()?;
            u32::from_str_radix(digits, 16).ok().map(|code| (code, &tail[len + 1..]))
        };
        let escape = match (first, tail.first()) {
            (b'\\', Some(b'x')) if bytes => hex(2),
            (b'\\', Some(b'u')) if !bytes => hex(4),
            (b'\\', Some(b'U')) if !bytes => hex(8),
            (b'\\', Some(c)) if bytes => {
                let code = match c {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => *other,
                };
                Some((u32::from(code), &tail[1..]))
            }
            _ => None,
        };
        match escape {
            Some((code, after)) => {
                push(code);
                rest = after;
            }
            None => push(u32::from(*first)),
        }
    }
    out.into()
}
