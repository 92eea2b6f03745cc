//! The states of one or several streams (the channels of an audio stream) as bytes: a safetensors file with one tensor
//! per span, its first axis the streams.
//!
//! The metadata holds `format` = `ssm-state`, `version`, `model` (hash of weights and options), `family`, `streams`,
//! `steps` (a number for each stream), what the element adds (`pts`, pending samples), and `sha256`. Any safetensors
//! reader can look inside.
//!
//! The checksum is over each entry of the metadata but itself in the order of names (name, zero byte, value, zero byte),
//! then over each tensor in the order of names (name, zero byte, data).

use crate::checkpoint::hex;
use crate::error::Error;
use crate::model::Info;
use crate::state::{Span, State, StateLayout};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

/// Version of the format; another one is refused.
const VERSION: &str = "2";

/// What a snapshot says beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Further entries: `pts` and whatever else the owner of the stream has to remember.
    pub extra: BTreeMap<String, String>,
}

/// Streams that a snapshot may hold.
const MAX_STREAMS: usize = 1024;

/// Saved states of streams that belong together.
pub struct Snapshot {
    /// The states, one a stream.
    pub states: Vec<State>,
    /// Values that belong to the owner of the stream (samples not yet processed).
    pub pending: Vec<f32>,
    /// Entries of the owner.
    pub header: SnapshotHeader,
}

fn mismatch(field: &str, expected: impl ToString, got: impl ToString) -> Error {
    Error::Snapshot { field: field.into(), expected: expected.to_string(), got: got.to_string() }
}

/// The checksum of metadata without it, and of tensors.
fn checksum<'a>(metadata: &BTreeMap<String, String>, tensors: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (name, value) in metadata {
        [name, value].iter().for_each(|s| hash.update([s.as_bytes(), &[0]].concat()));
    }
    for (name, data) in BTreeMap::from_iter(tensors) {
        hash.update([name.as_bytes(), &[0]].concat());
        hash.update(data);
    }
    hex(&hash.finalize())
}

/// Refuses states of another model.
pub(crate) fn of_layout(states: &[State], layout: &StateLayout) -> Result<(), Error> {
    match states.iter().find(|state| state.data.len() != layout.len()) {
        Some(other) => Err(mismatch("state", format!("{} values", layout.len()), other.data.len())),
        None => Ok(()),
    }
}

/// Takes an entry out that has to be there.
fn take(metadata: &mut BTreeMap<String, String>, key: &str, want: &str) -> Result<(), Error> {
    match metadata.remove(key) {
        Some(got) if got == want => Ok(()),
        got => Err(mismatch(key, want, got.unwrap_or_else(|| "nothing".into()))),
    }
}

/// The tensors of a snapshot, and what else its metadata says, where the checksum agrees.
fn whole(bytes: &[u8]) -> Result<(SafeTensors<'_>, BTreeMap<String, String>), Error> {
    let (_, head) =
        SafeTensors::read_metadata(bytes).map_err(|e| mismatch("file", "a safetensors file of format ssm-state", e))?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| mismatch("file", "whole tensors", e))?;
    let mut metadata: BTreeMap<String, String> = head.metadata().clone().unwrap_or_default().into_iter().collect();
    let sum = metadata.remove("sha256");
    let real = checksum(&metadata, file.iter().map(|(name, t)| (name, t.data())));
    take(&mut metadata, "format", "ssm-state")?;
    take(&mut metadata, "version", VERSION)?;
    if sum.as_deref() != Some(&real) {
        return Err(mismatch("sha256", real, sum.as_deref().unwrap_or("nothing")));
    }
    Ok((file, metadata))
}

impl Snapshot {
    /// The snapshot as bytes.
    ///
    /// # Errors
    /// A state is another model's, or an entry of the owner has a name of this format.
    pub fn save(&self, info: &Info, layout: &StateLayout) -> Result<Vec<u8>, Error> {
        of_layout(&self.states, layout)?;
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let spans: Vec<(String, Vec<usize>, Vec<u8>)> = layout
            .spans()
            .iter()
            .map(|s| {
                let shape = [&[self.states.len()], &s.shape[..]].concat();
                (s.name.clone(), shape, self.states.iter().flat_map(|t| bytes(&t.data[s.range()])).collect())
            })
            .chain([("pending".to_owned(), vec![self.pending.len()], bytes(&self.pending))])
            .collect();
        let steps: Vec<String> = self.states.iter().map(|s| s.steps.to_string()).collect();
        let mut metadata = self.header.extra.clone();
        for (key, value) in [
            ("format", "ssm-state".to_owned()),
            ("version", VERSION.to_owned()),
            ("model", info.hash.clone()),
            ("family", info.family.to_owned()),
            ("streams", self.states.len().to_string()),
            ("steps", steps.join(" ")),
        ] {
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(mismatch(key, "an entry of the format", "one of the owner"));
            }
        }
        let sum = checksum(&metadata, spans.iter().map(|(name, _, data)| (&**name, &**data)));
        metadata.insert("sha256".into(), sum);
        let metadata: HashMap<String, String> = metadata.into_iter().collect();
        let views = spans.iter().map(|(name, shape, data)| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).map(|v| (name, v))
        });
        let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| mismatch("tensors", "writable spans", e))?;
        safetensors::serialize(views, Some(metadata)).map_err(|e| mismatch("file", "writable spans", e))
    }

    /// Whether bytes are a whole snapshot, of whatever model.
    ///
    /// # Errors
    /// They are none, or one of another version, or not what was saved.
    pub fn check(bytes: &[u8]) -> Result<(), Error> {
        whole(bytes).map(|_| ())
    }

    /// Reads bytes that [`Snapshot::save`] made for the same model.
    ///
    /// # Errors
    /// The bytes are no snapshot, or one of another model, version or layout; nothing is changed then.
    pub fn load(bytes: &[u8], info: &Info, layout: &StateLayout) -> Result<Self, Error> {
        let (file, mut extra) = whole(bytes)?;
        take(&mut extra, "family", info.family)?;
        take(&mut extra, "model", &info.hash)?;
        let mut word = |key: &str| extra.remove(key).unwrap_or_default();
        let streams = word("streams");
        let streams: usize = streams
            .parse()
            .ok()
            .filter(|n| *n <= MAX_STREAMS)
            .ok_or_else(|| mismatch("streams", format!("a number up to {MAX_STREAMS}"), format!("{streams:?}")))?;
        let words = word("steps");
        let steps: Vec<u64> = words.split(' ').filter_map(|n| n.parse().ok()).filter(|n| *n < 1 << 48).collect();
        if steps.len() != streams {
            return Err(mismatch("steps", format!("{streams} numbers below 2^48"), format!("{words:?}")));
        }
        let values = |name: &str, shape: Option<&[usize]>| -> Result<Vec<f32>, Error> {
            let t = file.tensor(name).map_err(|_| mismatch(name, "a tensor of this name", "nothing"))?;
            if t.dtype() != safetensors::Dtype::F32 || shape.is_some_and(|s| s != t.shape()) {
                let want = shape.map_or("F32".to_owned(), |s| format!("F32 {s:?}"));
                return Err(mismatch(name, want, format!("{:?} {:?}", t.dtype(), t.shape())));
            }
            Ok(t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let shape = |span: &Span| [&[streams], &span.shape[..]].concat();
        let spans = layout.spans().iter().map(|span| values(&span.name, Some(&shape(span))));
        // Before there is memory for the states: the file has as many as it says.
        let spans: Vec<Vec<f32>> = spans.collect::<Result<_, _>>()?;
        let mut states: Vec<State> = steps.into_iter().map(|steps| State { steps, ..State::new(layout) }).collect();
        for (span, saved) in layout.spans().iter().zip(&spans) {
            for (state, saved) in states.iter_mut().zip(saved.chunks_exact(span.len().max(1))) {
                state.data[span.range()].copy_from_slice(saved);
            }
        }
        if let Some(name) = file.names().into_iter().find(|n| layout.span(n).is_none() && *n != "pending") {
            return Err(mismatch(name, "no such tensor", "a tensor"));
        }
        Ok(Self { states, pending: values("pending", None)?, header: SnapshotHeader { extra } })
    }
}
