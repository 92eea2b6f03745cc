//! `ssmembed`: see [`imp`].

use glib::prelude::*;

mod imp;

glib::wrapper! {
    /// Vectors of features of frames or audio.
    pub struct Embed(ObjectSubclass<imp::Embed>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "ssmembed", gst::Rank::NONE, Embed::static_type())
}
