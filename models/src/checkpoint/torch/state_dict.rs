//! What a pickle says: which of its dicts is the weights, and what its tensors are.

use super::Source;
use crate::checkpoint::error::some;
use crate::checkpoint::pickle::{Id, Pickle, Value};
use crate::checkpoint::tensor::Dtype;
use crate::checkpoint::{CheckpointError, Metadata};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// Keys under which training containers keep the weights.
const CONTAINERS: [&str; 3] = ["model", "state_dict", "model_state_dict"];

/// A storage that the pickle names.
pub(super) struct Place<'a> {
    pub(super) key: &'a str,
    pub(super) numbers: u64,
    pub(super) bytes: u64,
    /// Bytes of one of its numbers (of one part of a complex one), for the byte order.
    pub(super) unit: usize,
}

/// A tensor as the pickle describes it.
pub(super) struct View<'a> {
    pub(super) place: Place<'a>,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
    /// In bytes.
    pub(super) offset: usize,
}

/// A number type of torch: of which type its parts are, and whether there are two (re, im).
type Number = (Dtype, bool);

/// The type of a storage by its class.
fn storage_type(class: &str) -> Option<Number> {
    Some(match class {
        "BoolStorage" => (Dtype::Bool, false),
        "ByteStorage" | "UntypedStorage" => (Dtype::U8, false),
        "CharStorage" => (Dtype::I8, false),
        "ShortStorage" => (Dtype::I16, false),
        "IntStorage" => (Dtype::I32, false),
        "LongStorage" => (Dtype::I64, false),
        "HalfStorage" => (Dtype::F16, false),
        "BFloat16Storage" => (Dtype::BF16, false),
        "FloatStorage" => (Dtype::F32, false),
        "DoubleStorage" => (Dtype::F64, false),
        "ComplexFloatStorage" => (Dtype::F32, true),
        "ComplexDoubleStorage" => (Dtype::F64, true),
        _ => return None,
    })
}

/// The type named by a `torch.…` global.
fn number_type(name: &str) -> Option<Number> {
    Some(match name {
        "bool" => (Dtype::Bool, false),
        "uint8" => (Dtype::U8, false),
        "int8" => (Dtype::I8, false),
        "int16" => (Dtype::I16, false),
        "uint16" => (Dtype::U16, false),
        "int32" => (Dtype::I32, false),
        "uint32" => (Dtype::U32, false),
        "int64" => (Dtype::I64, false),
        "uint64" => (Dtype::U64, false),
        "float16" => (Dtype::F16, false),
        "bfloat16" => (Dtype::BF16, false),
        "float32" => (Dtype::F32, false),
        "float64" => (Dtype::F64, false),
        "complex64" => (Dtype::F32, true),
        "complex128" => (Dtype::F64, true),
        _ => return None,
    })
}

/// A view as it was found, or what stands there instead.
type Rebuilt<'a> = Result<View<'a>, String>;

/// Functions by which torch rebuilds a tensor from a storage.
const REBUILD: [&str; 3] = ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"];
/// Functions that wrap a tensor, which is their first argument.
const WRAP: [&str; 2] = ["_rebuild_parameter", "_rebuild_parameter_with_state"];

/// The function that builds a tensor and its arguments; `None` for other values.
fn tensor_call<'p>(pickle: &'p Pickle<'_>, id: Id) -> Option<(&'p str, &'p [Id])> {
    let ((module, name), args) = pickle.call(id)?;
    match module {
        // A subclass of Tensor: (function, class, its arguments, state).
        "torch._tensor" if name == "_rebuild_from_type_v2" => {
            let (_, name) = pickle.global(*args.first()?)?;
            Some((name, pickle.members(*args.get(2)?)?))
        }
        "torch._utils" if name.starts_with("_rebuild") => Some((name, args)),
        _ => None,
    }
}

/// The tensor that a value stands for; `None` for values that are no tensors.
fn tensor<'p>(pickle: &'p Pickle<'_>, id: Id) -> Option<Rebuilt<'p>> {
    let (mut name, mut args) = tensor_call(pickle, id)?;
    // A parameter holds a tensor, which holds none.
    if WRAP.contains(&name) {
        let Some(inner) = args.first().and_then(|id| tensor_call(pickle, *id)) else {
            return Some(Err("a parameter without tensor".into()));
        };
        (name, args) = inner;
    }
    Some(if REBUILD.contains(&name) { rebuild(pickle, name, args) } else { Err(format!("torch._utils.{name}")) })
}

/// Axes of a tensor, as many as torch allows.
const MAX_AXES: usize = 64;

fn rebuild<'p>(pickle: &'p Pickle<'_>, name: &str, args: &[Id]) -> Rebuilt<'p> {
    let &[storage, offset, size, stride, ..] = args else {
        return Err(format!("{name} of {} arguments", args.len()));
    };
    let unsigned = |id: Id| pickle.int(id).and_then(|n| usize::try_from(n).ok());
    let sizes = |id: Id| -> Result<Vec<usize>, String> {
        // torch.Size is an object whose one argument is the tuple.
        let id = match pickle.call(id) {
            Some(((_, "Size"), &[inner])) => inner,
            _ => id,
        };
        // A tuple costs a file little however often it is named.
        let sizes = pickle
            .members(id)
            .filter(|ids| ids.len() <= MAX_AXES)
            .map(|ids| ids.iter().map(|id| unsigned(*id)).collect::<Option<Vec<_>>>());
        sizes.flatten().ok_or_else(|| format!("sizes that are {}", pickle.describe(id)))
    };
    let (mut place, mut number, start) = place(pickle, storage)?;
    if name == "_rebuild_tensor_v3" {
        let dtype = args.get(6).and_then(|id| pickle.global(*id)).map_or("none", |(_, name)| name);
        number = number_type(dtype).ok_or_else(|| format!("numbers of type torch.{dtype}"))?;
        place.unit = number.0.size();
    }
    let (dtype, complex) = number;
    let (mut shape, mut stride) = (sizes(size)?, sizes(stride)?);
    let far = || format!("offset {}", pickle.describe(offset));
    let parts = if complex { 2 } else { 1 };
    let offset = unsigned(offset).and_then(|n| n.checked_add(start)?.checked_mul(dtype.size() * parts));
    let offset = offset.ok_or_else(far)?;
    if complex {
        shape.push(2);
        stride.iter_mut().for_each(|s| *s = s.saturating_mul(2));
        stride.push(1);
    }
    Ok(View { place, dtype, shape, stride, offset })
}

/// The storage that a persistent value names: ('storage', class, key, device, numbers, view), and where in it the value
/// starts (in numbers; old files keep views of storages).
fn place<'p>(pickle: &'p Pickle<'_>, id: Id) -> Result<(Place<'p>, Number, usize), String> {
    let parts = match pickle.get(id) {
        Value::Persistent(key) => pickle.members(*key),
        _ => None,
    };
    let Some(&[kind, class, key, _, numbers, ref view @ ..]) = parts else {
        return Err(format!("{} in place of a storage", pickle.describe(id)));
    };
    let class = pickle.global(class).map_or_else(|| pickle.describe(class), |(_, name)| name.to_owned());
    let number = storage_type(&class).ok_or_else(|| format!("a {class}"))?;
    let numbers = pickle.int(numbers).and_then(|n| u64::try_from(n).ok());
    let (Some("storage"), Some(key), Some(numbers)) = (pickle.text(kind), pickle.text(key), numbers) else {
        return Err("a storage without key or size".into());
    };
    let unit = number.0.size();
    let bytes = numbers.checked_mul(unit as u64 * if number.1 { 2 } else { 1 });
    let bytes = bytes.ok_or_else(|| format!("a storage of {numbers} numbers"))?;
    let start = match view.first().and_then(|view| pickle.members(*view)) {
        Some(&[_, start, _]) => {
            pickle.int(start).and_then(|n| usize::try_from(n).ok()).ok_or("a view before its storage")?
        }
        _ => 0,
    };
    Ok((Place { key, numbers, bytes, unit }, number, start))
}

/// Every storage that the pickle names, needed or not.
pub(super) fn places<'p>(pickle: &'p Pickle<'_>) -> Vec<Place<'p>> {
    let is_storage = |id: &Id| matches!(pickle.get(*id), Value::Persistent(_));
    (0..pickle.values().len() as Id).filter(is_storage).filter_map(|id| Some(place(pickle, id).ok()?.0)).collect()
}

/// The last value of a key.
fn value(pickle: &Pickle<'_>, items: &[(Id, Id)], key: &str) -> Option<Id> {
    items.iter().rev().find(|(k, _)| pickle.text(*k) == Some(key)).map(|(_, v)| *v)
}

/// The weights of a file as views by name: of a plain state dict, of the container's entry that holds one, or of `entry`.
pub(super) fn weights<'p>(
    source: &Source<'_>,
    pickle: &'p Pickle<'_>,
    entry: Option<&str>,
) -> Result<Vec<(String, View<'p>)>, CheckpointError> {
    let keys = |items: &[(Id, Id)]| {
        some(&items.iter().filter_map(|(k, _)| pickle.text(*k).map(str::to_owned)).collect::<Vec<_>>())
    };
    let items = |id| pickle.items(id).map(Vec::from_iter);
    let mut dict = items(pickle.root()).unwrap_or_default();
    if let Some(entry) = entry {
        dict = value(pickle, &dict, entry)
            .and_then(items)
            .ok_or_else(|| source.bad(entry, "a dict of this name", format!("entries {}", keys(&dict))))?;
    }
    // A container's entry may be a container again, but hardly more than once.
    for _ in 0..3 {
        let inner = CONTAINERS.iter().find_map(|key| items(value(pickle, &dict, key)?));
        match inner {
            Some(inner) => dict = inner,
            None => break,
        }
    }
    let mut views = BTreeMap::new();
    for (key, id) in &dict {
        let Some(name) = pickle.text(*key) else { continue };
        match tensor(pickle, *id) {
            None => {}
            Some(Ok(view)) => _ = views.insert(name, view),
            Some(Err(got)) => {
                return Err(CheckpointError::Type {
                    file: source.file.into(),
                    tensor: name.into(),
                    expected: "a dense tensor of real, complex or whole numbers".into(),
                    got,
                });
            }
        }
    }
    if views.is_empty() {
        let expected = format!("a dict of tensors, or one under {}", CONTAINERS.join(", "));
        let got = match keys(&dict) {
            none if none.is_empty() => pickle.describe(pickle.root()),
            keys => format!("no tensors under the keys {keys}"),
        };
        return Err(source.bad("pickle", expected, got));
    }
    Ok(views.into_iter().map(|(name, view)| (name.to_owned(), view)).collect())
}

/// The container's entries that are plain values, as JSON by `torch.` and their key.
pub(super) fn metadata(pickle: &Pickle<'_>) -> Metadata {
    let mut metadata = Metadata::new();
    let mut left = 1 << 14;
    for (key, id) in pickle.items(pickle.root()).into_iter().flatten() {
        if let Some((key, json)) = pickle.text(key).zip(plain(pickle, id, 12, &mut left)) {
            metadata.insert(format!("torch.{key}"), json.to_string());
        }
    }
    metadata
}

/// A value as JSON. `None` if there is a tensor in it, if it is too deep or if nothing is `left` of the values allowed, of
/// which a text counts for one every 64 bytes.
fn plain(pickle: &Pickle<'_>, id: Id, depth: usize, left: &mut usize) -> Option<Json> {
    let depth = depth.checked_sub(1)?;
    *left = left.checked_sub(1)?;
    // What many refer to is written out for each of them.
    let mut spend = |n: usize| {
        *left = left.saturating_sub(n);
        (*left > 0).then_some(())
    };
    match pickle.get(id) {
        Value::Text(text) => spend(text.len() / 64)?,
        Value::Bytes(bytes) => spend(bytes.len() / 64)?,
        _ => {}
    }
    let mut list = |ids: &[Id]| ids.iter().map(|id| plain(pickle, *id, depth, left)).collect::<Option<Vec<_>>>();
    Some(match pickle.get(id) {
        Value::None => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(n) => (*n).into(),
        Value::Float(v) => serde_json::Number::from_f64(*v).map_or_else(|| v.to_string().into(), Json::Number),
        Value::Text(text) => text.as_ref().into(),
        Value::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.into(),
        Value::Tuple(ids) | Value::List(ids) | Value::Set(ids) => Json::Array(list(ids)?),
        Value::Long(_) => pickle.describe(id).into(),
        Value::Global(names) => {
            *left = left.checked_sub((names.0.len() + names.1.len()) / 64)?;
            pickle.describe(id).into()
        }
        Value::Persistent(_) => return None,
        Value::Object(_) if tensor_call(pickle, id).is_some() => return None,
        Value::Dict(_) | Value::Object(_) => {
            let (items, mut state) = (pickle.items(id), None);
            if let Value::Object(object) = pickle.get(id) {
                if let Some(((_, "set" | "frozenset"), &[members])) = pickle.call(id) {
                    return plain(pickle, members, depth, left);
                }
                state = object.state.and_then(|state| pickle.items(state));
                // Classes may hide a storage in their arguments; those without content are named only.
                list(&object.elements)?;
            }
            if items.is_none() && state.is_none() {
                let name = pickle.describe(id);
                *left = left.checked_sub(name.len() / 64)?;
                return Some(name.into());
            }
            let mut map = Map::new();
            for (key, value) in items.into_iter().flatten().chain(state.into_iter().flatten()) {
                let key = match pickle.text(key) {
                    Some(key) if key.starts_with("__") => {
                        *left = left.checked_sub(1)?;
                        continue;
                    }
                    Some(key) => key.to_owned(),
                    None => pickle.describe(key),
                };
                *left = left.checked_sub(key.len() / 64)?;
                map.insert(key, plain(pickle, value, depth, left)?);
            }
            Json::Object(map)
        }
    })
}
