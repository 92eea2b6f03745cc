//! GStreamer elements that run state-space models on live video and audio.
