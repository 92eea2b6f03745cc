//! Results as the metas of GstAnalytics, which elements of GStreamer itself read: classes from 1.24 on, vectors as tensors
//! from 1.26 on. They go beside the project's own meta, which has the times, too.

use crate::results::Results;
use gst_analytics::{AnalyticsRelationMeta, AnalyticsRelationMetaClassificationExt};

/// Name of the tensor that holds a vector of features.
#[cfg(feature = "v1_26")]
const FEATURES: &str = "ssm-features";

/// Adds what one element found to the buffer.
pub(crate) fn attach(results: &[Results], buffer: &mut gst::BufferRef) {
    for result in results.iter().filter(|r| !r.classes.is_empty()) {
        let scores: Vec<f32> = result.classes.iter().map(|c| c.score as f32).collect();
        let name = |i: u32| format!("class {i}");
        let names: Vec<glib::Quark> = result
            .classes
            .iter()
            .map(|c| glib::Quark::from_str(c.label.clone().unwrap_or_else(|| name(c.index))))
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
    #[cfg(feature = "v1_26")]
    vectors(results, buffer);
}

/// Vectors as one tensor meta: a tensor of (1, length) for each.
#[cfg(feature = "v1_26")]
fn vectors(results: &[Results], buffer: &mut gst::BufferRef) {
    use gst_analytics::{Tensor, TensorDataType, TensorDimOrder, TensorMeta};
    let vectors = results.iter().filter_map(|r| r.vector.as_ref()).map(|v| v.bytes());
    let tensor = |bytes: Vec<u8>| {
        let dims = [1, bytes.len() / 4];
        let (id, data) = (glib::Quark::from_str(FEATURES), gst::Buffer::from_mut_slice(bytes));
        Tensor::new_simple(id, TensorDataType::Float32, data, TensorDimOrder::RowMajor, &dims)
    };
    let tensors: Vec<Tensor> = vectors.map(tensor).collect();
    if !tensors.is_empty() {
        TensorMeta::add(buffer).set(tensors.into());
    }
}
