//! `ssmoverlay`: see [`imp`].

use glib::prelude::*;

mod canvas;
mod font;
mod imp;
mod panel;

glib::wrapper! {
    /// Results drawn on video frames.
    pub struct Overlay(ObjectSubclass<imp::Overlay>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "ssmoverlay", gst::Rank::NONE, Overlay::static_type())
}
