//! Results as the metas of GstAnalytics, which elements of GStreamer itself read: classes from 1.24 on, vectors and the
//! probabilities of all classes as tensors from 1.26 on, these announced in the caps from 1.28 on. They go beside the
//! project's own meta, which has the times, too.

use crate::results::Results;
use gst_analytics::{AnalyticsRelationMeta, AnalyticsRelationMetaClassificationExt};
#[cfg(feature = "v1_26")]
use gst_analytics::{Tensor, TensorDataType, TensorDimOrder, TensorMeta};

/// Name of the tensor that holds a vector of features.
#[cfg(feature = "v1_26")]
const FEATURES: &str = "ssm-features";

/// Name of the tensor that holds the probabilities of all classes, and of its group in caps: what
/// `classifiertensordecoder` takes for scores after a softmax.
#[cfg(feature = "v1_26")]
const PROBABILITIES: &str = "classification-generic-softmaxed-out";

/// Field of caps that announces tensors.
#[cfg(feature = "v1_28")]
const TENSORS: &str = "tensors";

/// Adds the classes that one element found to the buffer.
pub(crate) fn attach(results: &[Results], buffer: &mut gst::BufferRef) {
    for result in results.iter().filter(|r| !r.classes.is_empty()) {
        let scores: Vec<f32> = result.classes.iter().map(|c| c.score as f32).collect();
        let name = |i: u32| format!("class {i}");
        let names: Vec<glib::Quark> = result
            .classes
            .iter()
            .map(|c| match &c.label {
                Some(label) => glib::Quark::from_str(&**label),
                None => glib::Quark::from_str(name(c.index)),
            })
            .collect();
        // One relation meta holds what all elements found.
        let added = match buffer.meta_mut::<AnalyticsRelationMeta>() {
            Some(mut meta) => meta.add_cls_mtd(&scores, &names).map(|_| ()),
            None => AnalyticsRelationMeta::add(buffer).add_cls_mtd(&scores, &names).map(|_| ()),
        };
        if let Err(error) = added {
            gst::warning!(crate::CAT, "classes of {} as GstAnalytics: {error}", result.element);
        }
    }
}

/// Adds vectors and other tensors to the buffer.
#[cfg(feature = "v1_26")]
pub(crate) fn attach_tensors(results: &[Results], mut others: Vec<Tensor>, buffer: &mut gst::BufferRef) {
    let vectors = results.iter().filter_map(|r| r.vector.as_ref());
    others.extend(vectors.map(|v| tensor(FEATURES, v.0.clone())));
    if !others.is_empty() {
        TensorMeta::add(buffer).set(others.into());
    }
}

/// The probabilities of all classes, whether they are told or not.
#[cfg(feature = "v1_26")]
pub(crate) fn probabilities(probabilities: &[f32]) -> Tensor {
    let bytes: Vec<u8> = probabilities.iter().flat_map(|p| p.to_ne_bytes()).collect();
    tensor(PROBABILITIES, bytes)
}

/// 32-bit floats as a tensor of (1, length).
#[cfg(feature = "v1_26")]
fn tensor(name: &str, bytes: impl AsRef<[u8]> + Send + 'static) -> Tensor {
    let dims = [1, bytes.as_ref().len() / 4];
    let (id, data) = (glib::Quark::from_str(name), gst::Buffer::from_slice(bytes));
    Tensor::new_simple(id, TensorDataType::Float32, data, TensorDimOrder::RowMajor, &dims)
}

/// Whether caps announce the probabilities of a classifier already: its tensor comes first on the buffer.
#[cfg(feature = "v1_28")]
pub(crate) fn announced(caps: &gst::Caps) -> bool {
    let announces = |s: &gst::StructureRef| {
        s.get::<&gst::StructureRef>(TENSORS).is_ok_and(|groups| groups.has_field(PROBABILITIES))
    };
    caps.iter().any(announces)
}

/// Announces the probabilities of `classes` classes in caps, beside the tensors of elements before.
#[cfg(feature = "v1_28")]
fn announce(caps: &mut gst::Caps, classes: usize) {
    if announced(caps) {
        return;
    }
    let tensor = gst::Caps::builder("tensor/strided")
        .field("tensor-id", PROBABILITIES)
        .field("dims", gst::Array::new([1, i32::try_from(classes).unwrap_or(i32::MAX)]))
        .field("dims-order", "row-major")
        .field("type", "float32")
        .build();
    let group = gst::UniqueList::new([tensor]);
    for structure in caps.make_mut().iter_mut() {
        let before = structure.get::<gst::Structure>(TENSORS).ok();
        let mut groups = before.unwrap_or_else(|| gst::Structure::new_empty("tensorgroups"));
        groups.set(PROBABILITIES, &group);
        structure.set(TENSORS, groups);
    }
}

/// Caps of the other side of an element, which come from those in the `direction`: downstream with its tensor of `classes`
/// probabilities, upstream without what is asked of tensors.
#[cfg(feature = "v1_28")]
pub(crate) fn negotiate(classes: Option<usize>, direction: gst::PadDirection, mut caps: gst::Caps) -> gst::Caps {
    match (classes, direction) {
        (Some(classes), gst::PadDirection::Sink) => announce(&mut caps, classes),
        (Some(_), _) => caps.make_mut().iter_mut().for_each(|s| s.remove_field(TENSORS)),
        (None, _) => {}
    }
    caps
}
