"""The script of the live page: listens to the events, draws, and sends the stop.  Text only ever enters the page as text."""

SCRIPT = r"""
"use strict";
const fixed = JSON.parse(document.getElementById("static").textContent);
const byId = id => document.getElementById(id);
const WINDOW_S = 10, SILENT_MS = 1000;
const points = [];
let token = fixed.token, heardAt = 0, isOver = false, wanted = false, last = null;

const make = (parent, tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
};

const cameras = Object.fromEntries(fixed.cameras.map(name => {
  const figure = make(byId("cameras"), "figure");
  const image = make(figure, "img");
  image.alt = "Camera " + name;
  return [name, {image, caption: make(figure, "figcaption", "", name)}];
}));
const joints = fixed.joints.map(name => {
  const box = make(byId("joints"), "div", "joint"), line = make(box, "div");
  make(line, "span", "", name);
  const output = make(line, "output"), canvas = make(box, "canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Command and state of " + name + " over the last ten seconds");
  return {output, canvas};
});
const tiles = {};
const tile = (name, value, isBad) => {
  if (!tiles[name]) {
    const box = make(byId("tiles"), "div", "tile");
    tiles[name] = {box, value: make(box, "b"), name: make(box, "span", "", name)};
  }
  tiles[name].value.textContent = value;
  tiles[name].box.classList.toggle("bad", Boolean(isBad));
};

const ms = value => {
  if (value === null || value === undefined) return "-";
  return value < 10000 ? Math.round(value) + " ms" : Math.round(value / 1000) + " s";
};
const words = name => name.toLowerCase().replaceAll("_", " ");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function surface(canvas) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width, height];
}

function drawJoint(index) {
  const [pen, width, height] = surface(joints[index].canvas);
  const span = WINDOW_S * fixed.control_hz, end = points[points.length - 1][0];
  const values = points.flatMap(point => [point[2][index], point[3][index]]).filter(value => value !== null);
  let low = Math.min(...values), high = Math.max(...values);
  const least = 0.04 * fixed.ranges[index];  // a joint at rest shows no noise
  if (high - low < least) { const middle = (low + high) / 2; low = middle - least / 2; high = middle + least / 2; }
  const x = tick => width * (1 - (end - tick) / span), y = value => 4 + (height - 8) * (1 - (value - low) / (high - low));
  for (const [part, name] of [[3, "--command"], [2, "--state"]]) {
    pen.strokeStyle = colour(name);
    pen.lineWidth = part === 3 ? 2.5 : 1.5;
    pen.beginPath();
    let before = null;
    for (const point of points) {
      const value = point[part][index];
      if (value === null) { before = null; continue; }
      // a gap in the ticks is a gap in the line
      if (before === null || point[0] - before > 3) pen.moveTo(x(point[0]), y(value)); else pen.lineTo(x(point[0]), y(value));
      before = point[0];
    }
    pen.stroke();
  }
  const newest = points[points.length - 1][3][index];
  joints[index].output.textContent = newest === null ? "-" : newest.toFixed(3);
}

function drawLateness(data) {
  const canvas = byId("lateness"), [pen, width, height] = surface(canvas);
  const total = data.counts.reduce((a, b) => a + b, 0);
  const most = Math.max(...data.counts, 1), step = (width - 16) / data.counts.length, floor = height - 22;
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "center";
  data.counts.forEach((count, i) => {
    const tall = count ? Math.max(2, (floor - 18) * Math.sqrt(count / most)) : 0;
    pen.fillStyle = colour("--command");
    pen.fillRect(8 + i * step + 1, floor - tall, Math.max(1, step - 2), tall);
    pen.fillStyle = colour("--soft");
    if (i % Math.ceil(34 / step) === 0) pen.fillText(String(data.edges_ms[i]), 8 + i * step, height - 7);
  });
  const over = data.counts.reduce((sum, count, i) => sum + (data.edges_ms[i] >= 2 ? count : 0), 0);
  canvas.setAttribute("aria-label", `Histogram of the lateness of ${total} ticks; ${over} were 2 ms or more late`);
}

function show(data) {
  last = data;
  heardAt = performance.now();
  byId("banner").dataset.mode = data.mode;
  byId("banner").classList.remove("stale");
  byId("mode").textContent = data.mode;
  byId("cause").textContent = data.cause === "NONE" ? "" : words(data.cause);
  byId("clock").textContent = data.seconds.toFixed(1) + " s";
  document.title = data.mode + " - " + byId("banner").querySelector("h1").textContent;
  if (wanted && (data.mode === "STOP" || data.mode === "ESTOP")) {
    byId("stop-note").textContent = "The arm is stopped. Only somebody at the robot's computer can release it.";
  }
  for (const name of fixed.cameras) {
    const camera = cameras[name], isLost = data.lost_cameras.includes(name);
    if (data.pictures[name]) camera.image.src = "data:image/jpeg;base64," + data.pictures[name];
    camera.caption.textContent = `${name}, ${ms(data.ages_ms[name])} old` + (isLost ? ", LOST" : "");
    camera.caption.classList.toggle("lost", isLost);
  }
  const counts = data.counts;
  tile("observation age", ms(data.ages_ms.observation));
  tile("context age", ms(data.ages_ms.context));
  tile("state age", ms(data.ages_ms.state));
  tile("ticks sent", counts.sent);
  tile("missed", counts.missed, counts.missed);
  tile("late", counts.late);
  tile("held", counts.held);
  tile("chunks rejected", counts.rejected);
  tile("clamped", counts.clamped);
  tile("violations", counts.violations, counts.violations);
  if (data.recorder) {
    const recorder = data.recorder;
    tile("recorder lost", recorder.has_ended ? "ENDED" : recorder.lost, recorder.lost || recorder.has_ended);
  }
  const list = (what, of) => Object.entries(of).map(([name, n]) => `${what} ${words(name)}: ${n}`);
  byId("details").textContent =
    [...list("held for", data.held_by_cause), ...list("rejected for", data.rejected_by_cause)].join(", ");
  const roles = byId("roles");
  Object.entries(data.silent_ms).forEach(([role, silent], i) => {
    const item = roles.children[i] || make(roles, "li");
    item.textContent = silent === null ? role + ": not heard of" : `${role}: ${ms(silent)} ago`;
    item.classList.toggle("bad", silent === null || silent > SILENT_MS);
  });
  for (const point of data.points) if (!points.length || point[0] > points[points.length - 1][0]) points.push(point);
  if (points.length) {
    const oldest = points[points.length - 1][0] - WINDOW_S * fixed.control_hz;
    while (points[0][0] < oldest) points.shift();
    if (!document.hidden) joints.forEach((_, index) => drawJoint(index));
  }
  if (!document.hidden) drawLateness(data.lateness);
}

async function stop() {
  wanted = true;
  byId("stop-note").textContent = "Asking for a stop ...";
  for (let attempt = 0; attempt < 5; attempt++) {
    try {
      const request = {method: "POST", headers: {"X-Edgewam-Token": token}, signal: AbortSignal.timeout(1000)};
      const answer = await fetch("/stop", request);
      if (answer.ok) {
        if (last && last.mode === "STOP") return;
        byId("stop-note").textContent = "Stop asked for; waiting for the arm.";
        return;
      }
    } catch (error) { /* not reachable: once more */ }
    await new Promise(done => setTimeout(done, 200));
  }
  byId("stop-note").textContent = "THE STOP DID NOT ARRIVE. Use the emergency stop.";
}
byId("stop").addEventListener("click", stop);

const stream = new EventSource("/events");
stream.addEventListener("hello", event => {
  const data = JSON.parse(event.data);
  token = data.token;  // the server may have been started again since the page was loaded
  show(data);
});
stream.addEventListener("glance", event => show(JSON.parse(event.data)));
stream.addEventListener("end", () => {
  isOver = true;
  stream.close();
  silence("run ended");
});

function silence(text) {
  byId("banner").classList.add("stale");
  byId("mode").textContent = text;
  byId("cause").textContent = last ? "last heard of: " + last.mode : "";
}
setInterval(() => {
  if (!isOver && performance.now() - heardAt > SILENT_MS) silence("no connection");
}, 300);
"""
