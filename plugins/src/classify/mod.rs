//! `ssmclassify`: see [`imp`].

use glib::prelude::*;

mod imp;

glib::wrapper! {
    /// Classes of each video frame.
    pub struct Classify(ObjectSubclass<imp::Classify>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "ssmclassify", gst::Rank::NONE, Classify::static_type())
}
