//! `ssmjson`: see [`imp`].

use glib::prelude::*;

mod imp;

glib::wrapper! {
    /// Results to lines of JSON.
    pub struct Json(ObjectSubclass<imp::Json>) @extends gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "ssmjson", gst::Rank::NONE, Json::static_type())
}
