//! `ssmvad`: see [`imp`].

use glib::prelude::*;

mod imp;
mod segments;

glib::wrapper! {
    /// Where there is speech in audio.
    pub struct Vad(ObjectSubclass<imp::Vad>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "ssmvad", gst::Rank::NONE, Vad::static_type())
}
