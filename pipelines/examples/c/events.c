/* An application in C: reads the results off the buffers, hears of events on the bus, saves the state when it is stopped and
 * goes on from it.
 *
 *   make && ./events STATE [SOURCE]
 *
 * SOURCE is as for gst-launch-1.0; without: ten seconds of test pictures. The plugin must be installed, or its folder be in
 * GST_PLUGIN_PATH. Nothing of it is linked: everything goes through names, properties, signals and messages. */
#include <gst/gst.h>
#include <signal.h>
#include <stdio.h>

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
  (void) number;
  stop = 1;
}

/* Each buffer that leaves the element carries what was found in it. */
static GstPadProbeReturn on_buffer(GstPad *pad, GstPadProbeInfo *info, gpointer counts)
{
  (void) pad;
  guint *count = counts;
  GstCustomMeta *meta = gst_buffer_get_custom_meta(GST_PAD_PROBE_INFO_BUFFER(info), "GstSsmResultMeta");
  const GValue *results = meta ? gst_structure_get_value(gst_custom_meta_get_structure(meta), "results") : NULL;
  count[0]++;
  for (guint i = 0; results && i < gst_value_array_get_size(results); i++) {
    const GstStructure *result = gst_value_get_structure(gst_value_array_get_value(results, i));
    const GValue *classes = gst_structure_get_value(result, "classes");
    guint64 pts = 0, step = 0;
    const gchar *label = NULL;
    gdouble score = -1;
    if (!classes || gst_value_array_get_size(classes) == 0)
      continue;
    /* Classes come in the order of the model. */
    for (guint k = 0; k < gst_value_array_get_size(classes); k++) {
      const GstStructure *one = gst_value_get_structure(gst_value_array_get_value(classes, k));
      gdouble other = 0;
      if (gst_structure_get_double(one, "score", &other) && other > score) {
        score = other;
        label = gst_structure_get_string(one, "label");
      }
    }
    gst_structure_get_uint64(result, "pts", &pts);
    gst_structure_get_uint64(result, "step", &step);
    if (count[1]++ % 25 == 0)
      printf("step %" G_GUINT64_FORMAT ", %.2f s: %s %.3f\n", step, pts / 1e9, label ? label : "?", score);
  }
  return GST_PAD_PROBE_OK;
}

static gboolean load(GstElement *element, const gchar *path)
{
  gchar *data;
  gsize length;
  gboolean loaded = FALSE;
  if (!g_file_get_contents(path, &data, &length, NULL))
    return FALSE;
  GBytes *bytes = g_bytes_new_take(data, length);
  g_signal_emit_by_name(element, "load-state", bytes, &loaded);
  g_bytes_unref(bytes);
  return loaded;
}

/* The code to end with. */
static int save(GstElement *element, const gchar *path)
{
  GBytes *bytes = NULL;
  GError *error = NULL;
  gsize length;
  g_signal_emit_by_name(element, "save-state", &bytes);
  if (!bytes) {
    printf("nothing to save to %s\n", path);
    return 0;
  }
  const gchar *data = g_bytes_get_data(bytes, &length);
  gboolean saved = g_file_set_contents(path, data, (gssize) length, &error);
  g_bytes_unref(bytes);
  if (!saved) {
    fprintf(stderr, "%s\n", error->message);
    g_error_free(error);
    return 1;
  }
  printf("saved %s\n", path);
  return 0;
}

int main(int argc, char **argv)
{
  gst_init(&argc, &argv);
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc < 2) {
    fprintf(stderr, "usage: events STATE [SOURCE]\n");
    return 2;
  }
  GError *error = NULL;
  /* The times of a new process begin at 0 again; a state that was loaded goes on there. */
  gchar *line = g_strdup_printf(
      "%s ! videoconvert ! ssmevents name=events ! fakesink sync=false",
      argc > 2 ? argv[2] : "videotestsrc num-buffers=250");
  GstElement *pipeline = gst_parse_launch(line, &error);
  g_free(line);
  if (!pipeline || error) {
    fprintf(stderr, "%s\n", error ? error->message : "no pipeline");
    return 1;
  }
  GstElement *events = gst_bin_get_by_name(GST_BIN(pipeline), "events");
  guint count[2] = { 0, 0 };
  GstPad *pad = gst_element_get_static_pad(events, "src");
  gst_pad_add_probe(pad, GST_PAD_PROBE_TYPE_BUFFER, on_buffer, count, NULL);
  gst_object_unref(pad);
  signal(SIGINT, on_signal);
  signal(SIGTERM, on_signal);

  if (load(events, argv[1]))
    printf("going on from %s\n", argv[1]);
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  GstBus *bus = gst_element_get_bus(pipeline);
  int code = -1;
  while (code < 0) {
    GstMessage *message = gst_bus_timed_pop(bus, 100 * GST_MSECOND);
    if (stop) {
      /* The stream stands still while its state is taken. */
      gst_element_set_state(pipeline, GST_STATE_PAUSED);
      code = save(events, argv[1]);
    }
    if (!message)
      continue;
    if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_EOS) {
      code = 0;
    } else if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_ERROR) {
      gst_message_parse_error(message, &error, NULL);
      fprintf(stderr, "%s: %s\n", GST_OBJECT_NAME(GST_MESSAGE_SRC(message)), error->message);
      g_clear_error(&error);
      code = 1;
    } else if (gst_message_has_name(message, "ssm-event")) {
      const GstStructure *s = gst_message_get_structure(message);
      guint64 at = 0;
      gst_structure_get_uint64(s, "end", &at);
      printf("event: %s at %.2f s\n", gst_structure_get_string(s, "kind"), at / 1e9);
    }
    gst_message_unref(message);
  }
  gst_element_set_state(pipeline, GST_STATE_NULL);
  printf("%u frames, %u results\n", count[0], count[1]);
  gst_object_unref(bus);
  gst_object_unref(events);
  gst_object_unref(pipeline);
  return code;
}
