//! The states of one or several streams (the channels of an audio stream) as bytes: a safetensors file with one tensor
//! per span, its first axis the streams.
//!
//! The metadata holds `format` = `ssm-state`, `version`, `model` (hash of weights and options), `family`, `streams`,
//! `steps`, and what the element adds (`pts`, pending samples). Any safetensors reader can look inside.

use crate::error::Error;
use crate::model::Info;
use crate::state::{State, StateLayout};
use std::collections::{BTreeMap, HashMap};

/// Version of the format; another one is refused.
const VERSION: &str = "1";

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

impl Snapshot {
    /// The snapshot as bytes.
    ///
    /// # Errors
    /// The writer refuses (never for states of this crate's models).
    pub fn save(&self, info: &Info, layout: &StateLayout) -> Result<Vec<u8>, Error> {
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
        let mut metadata: HashMap<String, String> = self.header.extra.clone().into_iter().collect();
        for (key, value) in [
            ("format", "ssm-state".to_owned()),
            ("version", VERSION.to_owned()),
            ("model", info.hash.clone()),
            ("family", info.family.to_owned()),
            ("streams", self.states.len().to_string()),
            ("steps", self.states.first().map_or(0, |s| s.steps).to_string()),
        ] {
            metadata.insert(key.to_owned(), value);
        }
        let views = spans.iter().map(|(name, shape, data)| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).map(|v| (name, v))
        });
        let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| mismatch("tensors", "writable spans", e))?;
        safetensors::serialize(views, Some(metadata)).map_err(|e| mismatch("file", "writable spans", e))
    }

    /// Reads bytes that [`Snapshot::save`] made for the same model.
    ///
    /// # Errors
    /// The bytes are no snapshot, or one of another model, version or layout; nothing is changed then.
    pub fn load(bytes: &[u8], info: &Info, layout: &StateLayout) -> Result<Self, Error> {
        let (_, head) = safetensors::SafeTensors::read_metadata(bytes)
            .map_err(|e| mismatch("file", "a safetensors file of format ssm-state", e))?;
        let mut extra: BTreeMap<String, String> = head.metadata().clone().unwrap_or_default().into_iter().collect();
        let mut expect = |key: &str, want: &str| match extra.remove(key) {
            Some(got) if got == want => Ok(()),
            got => Err(mismatch(key, want, got.unwrap_or_else(|| "nothing".into()))),
        };
        expect("format", "ssm-state")?;
        expect("version", VERSION)?;
        expect("family", info.family)?;
        expect("model", &info.hash)?;
        let mut number = |key: &str, most: u64| -> Result<u64, Error> {
            let word = extra.remove(key).unwrap_or_default();
            let value = word.parse().ok().filter(|n| *n <= most);
            value.ok_or_else(|| mismatch(key, format!("a number up to {most}"), format!("{word:?}")))
        };
        // No more streams than the file has room for, whatever its header says.
        let most = (bytes.len() / layout.bytes().max(1)).min(MAX_STREAMS);
        let streams = number("streams", most as u64)? as usize;
        let steps = number("steps", u64::MAX)?;
        let file = safetensors::SafeTensors::deserialize(bytes).map_err(|e| mismatch("file", "whole tensors", e))?;
        let values = |name: &str, shape: Option<&[usize]>| -> Result<Vec<f32>, Error> {
            let t = file.tensor(name).map_err(|_| mismatch(name, "a tensor of this name", "nothing"))?;
            if t.dtype() != safetensors::Dtype::F32 || shape.is_some_and(|s| s != t.shape()) {
                let want = shape.map_or("F32".to_owned(), |s| format!("F32 {s:?}"));
                return Err(mismatch(name, want, format!("{:?} {:?}", t.dtype(), t.shape())));
            }
            Ok(t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let mut states = vec![State { steps, ..State::new(layout) }; streams];
        for span in layout.spans() {
            let saved = values(&span.name, Some(&[&[streams], &span.shape[..]].concat()))?;
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
