//! `ssmaudiotag`: see [`imp`].

use glib::prelude::*;

mod imp;

glib::wrapper! {
    /// Classes of what is heard.
    pub struct AudioTag(ObjectSubclass<imp::AudioTag>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "ssmaudiotag", gst::Rank::NONE, AudioTag::static_type())
}
