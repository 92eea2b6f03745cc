//! `ssmevents`: see [`imp`].

use glib::prelude::*;

mod finder;
mod imp;

glib::wrapper! {
    /// Events in video, with their beginning and end.
    pub struct Events(ObjectSubclass<imp::Events>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "ssmevents", gst::Rank::NONE, Events::static_type())
}
