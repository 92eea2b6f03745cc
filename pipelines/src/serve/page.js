"use strict";
// Seconds that the timeline shows at most and at least, and how many of the best classes have a row.
const SPAN = 60, SHORT = 12, ROWS = 5;
const COLOURS = ["#5aa9ff", "#ffb454", "#7fd962", "#f07178", "#c792ea", "#39bae6", "#ffee99", "#95e6cb"];
const $ = (id) => document.getElementById(id);
const lanes = new Map(); // name -> { colour, points: [[seconds, score]] }
const events = [];
let first = Infinity, now = 0, dirty = false;

const seconds = (ns) => ns / 1e9;
const clock = (s) => { // in whole hundredths, so that 59.996 is 1:00.00
  const h = Math.round(s * 100);
  return `${Math.floor(h / 6000)}:${((h % 6000) / 100).toFixed(2).padStart(5, "0")}`;
};
const name = (c) => c.label ?? `class ${c.index}`;

// The lane of a name, an old or a new one; none if every colour is in use.
function lane(name) {
  if (lanes.has(name)) return lanes.get(name);
  // What was not told of for a while has left the timeline.
  for (const [other, { points }] of lanes) if (!points.length || points.at(-1)[0] < now - SPAN) lanes.delete(other);
  const used = new Set([...lanes.values()].map((l) => l.colour));
  const colour = COLOURS.find((c) => !used.has(c));
  if (colour) lanes.set(name, { colour, points: [] });
  return lanes.get(name);
}

function forget() {
  lanes.clear(); events.length = 0; first = Infinity; now = 0;
}

function add(name, at, score) {
  const points = lane(name)?.points;
  if (!points) return;
  points.push([at, score]);
  while (points.length && points[0][0] < now - SPAN - 1) points.shift();
}

function result(line) {
  const at = seconds(line.pts ?? 0);
  // A sender whose clock began anew.
  if (at < now - SPAN) forget();
  first = Math.min(first, at);
  now = Math.max(now, at);
  dirty = true;
  if (line.kind === "classes") {
    line.classes.forEach((c) => add(name(c), at, c.score));
    rows([...line.classes].sort((a, b) => (line.classes.length > ROWS ? b.score - a.score : 0)).slice(0, ROWS));
  } else if (line.kind === "speech") {
    add("speech", at, line.speech);
    rows([{ label: "speech", score: line.speech }]);
  } else if (line.kind === "event") {
    const e = line.event, from = seconds(e.start), to = seconds(e.end);
    events.push({ kind: e.kind, from, to });
    now = Math.max(now, to);
    const item = document.createElement("li");
    item.textContent = `${clock(to)}  ${e.kind}  ${e.score.toFixed(2)}`;
    $("events").prepend(item);
    while ($("events").children.length > 200) $("events").lastChild.remove();
    while (events.length > 200) events.shift();
  }
}

function rows(classes) {
  $("rows").replaceChildren(...classes.map((c) => {
    const row = document.createElement("div"), label = document.createElement("span");
    const bar = document.createElement("progress"), score = document.createElement("span");
    row.className = "row";
    label.textContent = name(c);
    bar.value = c.score;
    score.textContent = c.score.toFixed(2);
    row.append(label, bar, score);
    return row;
  }));
}

function draw() {
  requestAnimationFrame(draw);
  if (!dirty) return;
  dirty = false;
  const canvas = $("timeline"), g = canvas.getContext("2d");
  canvas.width = canvas.clientWidth;
  const { width, height } = canvas, foot = 20, top = 14;
  const span = Math.min(SPAN, Math.max(SHORT, now - first));
  const x = (t) => width - (now - t) / span * width, y = (v) => top + (1 - v) * (height - foot - top);
  g.clearRect(0, 0, width, height);
  g.font = "12px system-ui, sans-serif";
  g.fillStyle = "#9aa1ad";
  g.strokeStyle = "#2c3038";
  for (let t = Math.max(0, Math.ceil((now - span) / 10) * 10); t <= now; t += 10) {
    g.fillText(clock(t), x(t) + 3, height - 5);
    g.beginPath(); g.moveTo(x(t), 0); g.lineTo(x(t), height - foot); g.stroke();
  }
  for (const e of events.filter((e) => e.to > now - span)) {
    g.fillStyle = "rgba(255, 255, 255, .22)";
    g.fillRect(x(e.from), 0, Math.max(2, x(e.to) - x(e.from)), height - foot);
    g.fillStyle = "#e4e6ea";
    g.textAlign = x(e.to) > width - 70 ? "right" : "left";
    g.fillText(e.kind, g.textAlign === "right" ? x(e.from) - 4 : x(e.to) + 4, 11);
    g.textAlign = "left";
  }
  for (const { colour, points } of lanes.values()) {
    g.strokeStyle = colour;
    g.lineWidth = 1.5;
    g.beginPath();
    points.forEach(([t, v], i) => (i ? g.lineTo(x(t), y(v)) : g.moveTo(x(t), y(v))));
    g.stroke();
  }
  g.lineWidth = 1;
  $("legend").replaceChildren(...[...lanes].map(([name, { colour }]) => {
    const entry = document.createElement("span");
    entry.style.color = colour;
    entry.textContent = name;
    return entry;
  }));
}

const source = new EventSource("/events");
source.addEventListener("open", () => {
  // The server tells the last while again.
  forget();
  $("events").replaceChildren();
  $("state").textContent = "live";
});
source.addEventListener("result", (e) => result(JSON.parse(e.data)));
source.addEventListener("picture", (e) => {
  $("picture").src = `/picture?${e.data}`;
  $("picture").hidden = false;
});
source.addEventListener("end", () => { $("state").textContent = "ended"; });
source.addEventListener("error", () => { if ($("state").textContent !== "ended") $("state").textContent = "no connection, trying again"; });
window.addEventListener("resize", () => { dirty = true; });
draw();
