//! `ssmdenoise`: see [`imp`].

use glib::prelude::*;

mod flow;
mod imp;

glib::wrapper! {
    /// Audio in, clean audio out.
    pub struct Denoise(ObjectSubclass<imp::Denoise>) @extends gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "ssmdenoise", gst::Rank::NONE, Denoise::static_type())
}
