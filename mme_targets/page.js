// The page of save_html; page.html holds its frame, page.py its data.
"use strict";
(() => {
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const floats = text => new Float32Array(bytes(text).buffer);
const [S, Gy, Gx, N] = data.shape, L = N - 1, F = data.frames.length;
const points = floats(data.points), visible = bytes(data.visible);
const hog = data.hog && {
  bits: bytes(data.hog.bits), scale: floats(data.hog.scale),
  steps: data.hog.shape[0], channels: data.hog.shape[1], bins: data.hog.shape[2],
};
const tracks = Gy * Gx, rgb = (c, a = 1) => `rgb(${c[0]} ${c[1]} ${c[2]} / ${a})`;
const fixed = (v, n = 2) => (Object.is(v, -0) || Math.abs(v) < 0.5 * 10 ** -n ? 0 : v)
  .toFixed(n).replace("-", "−");
const X = (t, l) => points[(t * N + l) * 2], Y = (t, l) => points[(t * N + l) * 2 + 1];
const ramp = at => {
  const place = Math.min(Math.max(at, 0), 1) * (data.ramp.length - 1);
  const low = Math.min(Math.floor(place), data.ramp.length - 2), share = place - low;
  return data.ramp[low].map((u, i) => Math.round(u + (data.ramp[low + 1][i] - u) * share));
};

// Length of each track; those under a pixel are drawn as dots.
const path = new Float32Array(S * tracks);
for (let t = 0; t < path.length; t++)
  for (let l = 0; l < L; l++) path[t] += Math.hypot(X(t, l + 1) - X(t, l), Y(t, l + 1) - Y(t, l));
const isStill = t => !(path[t] >= data.still);

const state = window.mme = {
  frame: 0, playing: false, hovered: null, pinned: false, ready: false, frames: F,
  seek, play, pause, select, screen,
};

// ---- which tracks show at a frame, and how far they have grown
const grown = (s, f) => data.at[s].filter(at => at <= f).length - 1;
function shown(f) {
  const begun = [...Array(S).keys()].filter(s => data.at[s][0] <= f);
  const growing = begun.filter(s => data.at[s][L] >= f);
  return growing.length ? growing : begun.slice(-1);
}
const allowed = t => (visible[t] || $("invisible").checked) && (!isStill(t) || $("still").checked);

// ---- the stage
const stage = $("stage"), pen = stage.getContext("2d");
const images = data.frames.map(text => {
  const image = new Image();
  image.src = "data:image/jpeg;base64," + text;
  return image;
});
let zoom = 1;
function fit() {
  const room = Math.max(220, innerHeight - 250) * data.width / data.height;
  document.body.style.setProperty("--fit", `${Math.round(room)}px`);
  stage.style.aspectRatio = `${data.width} / ${data.height}`;
  const box = stage.getBoundingClientRect(), dense = window.devicePixelRatio || 1;
  stage.width = Math.round(box.width * dense);
  stage.height = Math.round(stage.width * data.height / data.width);
  zoom = stage.width / data.width;
  draw();
}
const sx = x => (x + 0.5) * zoom;  // pixel centres are integers
function draw() {
  pen.imageSmoothingQuality = "high";
  pen.drawImage(images[state.frame], 0, 0, stage.width, stage.height);
  pen.fillStyle = "rgb(0 0 0 / 0.18)";
  pen.fillRect(0, 0, stage.width, stage.height);
  pen.lineCap = pen.lineJoin = "round";
  const unit = Math.min(4, Math.max(1.2, zoom * 0.5));
  for (const s of shown(state.frame)) {
    const last = grown(s, state.frame);
    const moving = [], leaving = [], dots = [], blueDots = [];
    for (let t = s * tracks; t < (s + 1) * tracks; t++)
      if (allowed(t)) (isStill(t) ? (visible[t] ? dots : blueDots)
        : visible[t] ? moving : leaving).push(t);
    spots(dots, last, unit * 0.75, rgb(ramp(0.35), 0.9));
    spots(blueDots, last, unit * 0.75, rgb(data.invisible, 0.9));
    for (let l = 0; l < last; l++) lines(leaving, l, l + 1, unit, rgb(data.invisible));
    spots(leaving, last, unit * 0.95, rgb(data.invisible));
    for (let l = 0; l < last; l++) lines(moving, l, l + 1, unit, rgb(ramp((l + 0.5) / L)));
    spots(moving, last, unit * 0.95, rgb(ramp(L ? last / L : 1)));
  }
  const h = state.hovered;
  if (h && shown(state.frame).includes(h.start)) {
    const last = grown(h.start, state.frame), one = [h.index];
    lines(one, 0, last, unit * 4, "rgb(0 0 0 / 0.75)");
    spots(one, last, unit * 3.4, "rgb(0 0 0 / 0.75)");
    lines(one, 0, last, unit * 2.6, "#fff");
    spots(one, last, unit * 2.7, "#fff");
    for (let l = 0; l < last; l++)
      lines(one, l, l + 1, unit * 1.5,
        visible[h.index] ? rgb(ramp((l + 0.5) / L)) : rgb(data.invisible));
  }
}
function lines(list, from, to, width, colour) {
  pen.beginPath();
  for (const t of list) {
    pen.moveTo(sx(X(t, from)), sx(Y(t, from)));
    for (let l = from + 1; l <= to; l++) pen.lineTo(sx(X(t, l)), sx(Y(t, l)));
  }
  pen.lineWidth = width;
  pen.strokeStyle = colour;
  pen.stroke();
}
function spots(list, l, radius, colour) {
  pen.beginPath();
  for (const t of list) {
    const x = sx(X(t, l)), y = sx(Y(t, l));
    pen.moveTo(x + radius, y);
    pen.arc(x, y, radius, 0, 7);
  }
  pen.fillStyle = colour;
  pen.fill();
}

// ---- time
const delay = f => {
  const gap = f + 1 < F ? data.times[f + 1] - data.times[f] : 0;
  return 1000 * (gap > 0 ? gap : 1 / (data.fps || 25));
};
let before = 0, owed = 0;
function tick(now) {
  if (!state.playing) return;
  owed += Math.min(now - before, 250) * Number($("speed").value);
  before = now;
  let f = state.frame;
  while (owed >= delay(f)) { owed -= delay(f); f = (f + 1) % F; }
  if (f !== state.frame) seek(f);
  requestAnimationFrame(tick);
}
function play() {
  if (state.playing) return;
  state.playing = true;
  before = performance.now();
  owed = 0;
  button();
  requestAnimationFrame(tick);
}
function pause() { state.playing = false; button(); }
function button() {
  $("play").setAttribute("aria-pressed", state.playing);
  $("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
}
function seek(f) {
  state.frame = Math.min(Math.max(Math.round(f), 0), F - 1);
  const raw = data.indices[state.frame], time = data.times[state.frame].toFixed(3);
  $("scrub").value = state.frame;
  $("scrub").setAttribute("aria-valuetext", `frame ${raw}, ${time} seconds`);
  $("where").textContent = `frame ${raw} · ${time} s`;
  if (pointer && !state.pinned) hover(pick(pointer));
  draw();
  mark();
}

// ---- one track
let pointer = null;
function pick(at) {
  const box = stage.getBoundingClientRect(), scale = data.width / box.width;
  const x = (at.x - box.left) * scale - 0.5, y = (at.y - box.top) * scale - 0.5;
  let best = null, least = 13 * scale;
  for (const s of shown(state.frame)) {
    const last = grown(s, state.frame);
    for (let t = s * tracks; t < (s + 1) * tracks; t++) {
      if (!allowed(t)) continue;
      let d = Math.hypot(X(t, 0) - x, Y(t, 0) - y);
      for (let l = 0; l < last; l++) d = Math.min(d, toSegment(x, y, t, l));
      if (d < least) { least = d; best = t; }
    }
  }
  return best;
}
function toSegment(x, y, t, l) {
  const ax = X(t, l), ay = Y(t, l), ux = X(t, l + 1) - ax, uy = Y(t, l + 1) - ay;
  const along = ((x - ax) * ux + (y - ay) * uy) / (ux * ux + uy * uy || 1);
  const k = Math.min(Math.max(along, 0), 1);
  return Math.hypot(x - ax - k * ux, y - ay - k * uy);
}
function hover(t) {
  if ((state.hovered && state.hovered.index) === (t === null ? null : t)) return;
  state.hovered = t === null ? null : {
    index: t, start: Math.floor(t / tracks), row: Math.floor(t % tracks / Gx), column: t % Gx,
  };
  inspect();
}
function select(start, row, column) {  // the track at a place of the grid, kept
  hover((start * Gy + row) * Gx + column);
  state.pinned = true;
  $("pinned").hidden = false;
  draw();
}
function release() {
  state.pinned = false;
  $("pinned").hidden = true;
  hover(pointer ? pick(pointer) : null);
  draw();
}
function screen(t, l) {  // where a point of a track is in the window, px
  const box = stage.getBoundingClientRect(), scale = box.width / data.width;
  return [box.left + (X(t, l) + 0.5) * scale, box.top + (Y(t, l) + 0.5) * scale];
}
const raw = position => data.indices[Math.min(position, F - 1)];
function inspect() {
  const h = state.hovered;
  $("hint").hidden = !!h;
  $("track").hidden = !h;
  if (!h) return;
  const t = h.index, at = data.at[h.start];
  $("title").textContent = `Track in row ${h.row}, column ${h.column}`;
  $("seed").textContent = `(${fixed(X(t, 0))}, ${fixed(Y(t, 0))}) px`;
  $("span").textContent = L ? `${raw(at[0])} to ${raw(at[L])}, start ${h.start + 1} of ${S}`
    : `${raw(at[0])}, start ${h.start + 1} of ${S}`;
  const dx = X(t, L) - X(t, 0), dy = Y(t, L) - Y(t, 0);
  $("moves").textContent = `(${fixed(dx)}, ${fixed(dy)}) px, along ${fixed(path[t])} px`;
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.background = visible[t] ? rgb(ramp(0.6)) : rgb(data.invisible);
  $("seen").replaceChildren(dot, visible[t] ? "visible: counts in the loss"
    : "invisible: left out of the loss");
  fill(t, h.start, at);
}
function fill(t, s, at) {
  const steps = hog ? hog.steps : L, table = $("steps");
  table.replaceChildren();
  table.style.minWidth = `${46 + 46 * steps}px`;
  const make = (name, parent, text) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  };
  const head = make("tr", make("thead", table)), body = make("tbody", table);
  make("td", head, steps > 1 ? "Step" : "");
  for (let l = 0; l < steps; l++) {
    const cell = make("th", head);
    cell.scope = "col";
    make("b", cell, L ? l + 1 : "patch");
    cell.append(raw(at[l]));
    cell.title = `raw frame ${raw(at[l])}`;
    cell.dataset.at = at[l];
  }
  const row = (name, cell, first) => {
    const line = make("tr", body);
    make("th", line, name).scope = "row";
    if (first) line.className = "first";
    for (let l = 0; l < steps; l++) cell(make("td", line), l);
  };
  const picture = (cell, label, paint) => {
    const canvas = make("canvas", cell);
    canvas.width = canvas.height = 144;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    paint(canvas.getContext("2d"), 144);
  };
  row("Image", (cell, l) => picture(cell, `The image around step ${l + 1}`,
    (c, n) => patch(c, n, at[l], X(t, l), Y(t, l))));
  if (hog) {
    row("HOG", (cell, l) => picture(cell, `Edge directions at step ${l + 1}`,
      (c, n) => rose(c, n, t, l)));
    row("R G B", (cell, l) => picture(cell, `Nine bins of three channels at step ${l + 1}`,
      (c, n) => heat(c, n, t, l)));
  }
  if (L) {
    const d = (f, l) => f(t, l + 1) - f(t, l);
    row("Δx", (cell, l) => { cell.textContent = fixed(d(X, l)); }, true);
    row("Δy", (cell, l) => { cell.textContent = fixed(d(Y, l)); });
    row("px", (cell, l) => { cell.textContent = fixed(Math.hypot(d(X, l), d(Y, l))); });
  }
  $("note").textContent = hog ? "HOG: bars lie along the edges, all channels together, to one "
    + `scale. Below, each channel's ${hog.bins} bins from top to bottom.` : "";
  mark();
}
function mark() {  // the step that the stage shows
  for (const cell of document.querySelectorAll("#steps thead th"))
    cell.classList.toggle("current", Number(cell.dataset.at) === state.frame);
}
const ink = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function patch(c, n, position, x, y) {  // 32 px of the frame around the point
  const side = 32, k = n / side, image = images[Math.min(position, F - 1)];
  c.fillStyle = ink("--zero");
  c.fillRect(0, 0, n, n);
  c.imageSmoothingQuality = "high";
  c.setTransform(k, 0, 0, k, (side / 2 - x - 0.5) * k, (side / 2 - y - 0.5) * k);
  c.drawImage(image, 0, 0, data.width, data.height);
  c.setTransform(1, 0, 0, 1, 0, 0);
  for (const [width, colour] of [[6, "rgb(0 0 0 / 0.6)"], [2.5, "#fff"]]) {
    c.lineWidth = width;
    c.strokeStyle = colour;
    c.beginPath();
    c.arc(n / 2, n / 2, 10, 0, 7);
    c.stroke();
  }
}
const value = (t, l, channel, bin) =>
  hog.bits[((t * hog.steps + l) * hog.channels + channel) * hog.bins + bin];
const total = (t, l, bin) => {
  let sum = 0;
  for (let channel = 0; channel < hog.channels; channel++) sum += value(t, l, channel, bin);
  return sum;
};
function rose(c, n, t, l) {
  let most = 1;
  for (let i = 0; i < hog.steps; i++)
    for (let b = 0; b < hog.bins; b++) most = Math.max(most, total(t, i, b));
  c.fillStyle = ink("--zero");
  c.fillRect(0, 0, n, n);
  c.strokeStyle = ink("--ink");
  c.lineCap = "round";
  c.lineWidth = n / 18;
  for (let b = 0; b < hog.bins; b++) {
    // Bin b holds gradients at atan2(x, y) = angle; the edge lies across them.
    const angle = (b + 0.5) / hog.bins * Math.PI, size = total(t, l, b) / most;
    const reach = size * n * 0.44;
    c.globalAlpha = 0.25 + 0.75 * size;
    c.beginPath();
    c.moveTo(n / 2 - Math.cos(angle) * reach, n / 2 + Math.sin(angle) * reach);
    c.lineTo(n / 2 + Math.cos(angle) * reach, n / 2 - Math.sin(angle) * reach);
    c.stroke();
  }
}
function heat(c, n, t, l) {
  const colours = hog.channels === 3 ? [[222, 64, 52], [46, 152, 72], [58, 112, 226]]
    : Array(hog.channels).fill([200, 90, 40]);
  c.fillStyle = ink("--zero");
  c.fillRect(0, 0, n, n);
  for (let channel = 0; channel < hog.channels; channel++)
    for (let b = 0; b < hog.bins; b++) {
      c.fillStyle = rgb(colours[channel], value(t, l, channel, b) / 255);
      c.fillRect(channel * n / hog.channels + 1, b * n / hog.bins + 1,
        n / hog.channels - 2, n / hog.bins - 2);
    }
}

// ---- hands
stage.addEventListener("pointermove", e => {
  pointer = { x: e.clientX, y: e.clientY };
  if (!state.pinned) { hover(pick(pointer)); draw(); }
});
stage.addEventListener("pointerleave", () => {
  pointer = null;
  if (!state.pinned) { hover(null); draw(); }
});
stage.addEventListener("click", e => {
  const t = pick({ x: e.clientX, y: e.clientY });
  if (t === null || (state.pinned && state.hovered && state.hovered.index === t)) release();
  else { hover(t); select(state.hovered.start, state.hovered.row, state.hovered.column); }
});
$("play").addEventListener("click", () => state.playing ? pause() : play());
$("scrub").addEventListener("input", e => { pause(); seek(Number(e.target.value)); });
for (const id of ["invisible", "still"]) $(id).addEventListener("change", draw);
document.addEventListener("keydown", e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const on = e.target.closest("button, select, input");
  const side = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const step = side[e.key];
  if (e.key === " " && (!on || on.type === "range")) state.playing ? pause() : play();
  else if (e.key === "Escape") release();
  else if (step && e.shiftKey && !(on && on.tagName === "SELECT")) {
    const start = shown(state.frame)[0] || 0, h = state.hovered;
    const from = h ? [h.row, h.column] : [Gy >> 1, Gx >> 1];
    const clamp = (v, n) => Math.min(Math.max(v, 0), n - 1);
    select(h && shown(state.frame).includes(h.start) ? h.start : start,
      clamp(from[0] + (h ? step[0] : 0), Gy), clamp(from[1] + (h ? step[1] : 0), Gx));
  } else if (on && (on.type === "range" || on.tagName === "SELECT")) return;
  else if (step && step[1]) { pause(); seek(state.frame + step[1]); }
  else if (e.key === "Home") { pause(); seek(0); }
  else if (e.key === "End") { pause(); seek(F - 1); }
  else return;
  e.preventDefault();
});
addEventListener("resize", fit);
const sharp = () => matchMedia(`(resolution: ${devicePixelRatio}dppx)`)
  .addEventListener("change", () => { fit(); sharp(); }, { once: true });
sharp();  // another screen, or zoomed
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", inspect);

// ---- begin where the first tracks are whole
$("name").textContent = data.name;
$("about").textContent = `${data.width} × ${data.height} px · frames ${raw(0)} to ${raw(F - 1)} at `
  + `${Number(data.fps.toFixed(2))} fps · ${S} starts × ${Gy} × ${Gx} tracks of ${L} steps`;
$("ramp").style.background = `linear-gradient(90deg, ${data.ramp.map(c => rgb(c)).join(", ")})`;
$("leaves").style.background = rgb(data.invisible);
$("scrub").max = F - 1;
Promise.all(images.map(image => image.decode())).then(() => {
  fit();
  seek(data.at[0][L]);
  state.ready = true;
});
})();
