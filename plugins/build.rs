//! Puts version and commit into the plugin description.
fn main() {
    gst_plugin_version_helper::info()
}
