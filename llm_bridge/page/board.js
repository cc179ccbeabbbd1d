// The board: a picture on which regions are marked with mouse, finger or keys.
// The server is sent what was marked, in pixels of the picture; `props.value` carries both directions:
// from the server {picture, width, height, known} or {error}, to it {regions} or {upload}.
const find = (name) => element.querySelector(name);
const canvas = find("canvas"), pen = canvas.getContext("2d"), status = find(".status");
const state = { image: null, width: 0, height: 0, known: 0, regions: [], drag: null, cross: null, corner: null };

const say = (words, wrong) => {
  status.textContent = words;
  status.classList.toggle("wrong", Boolean(wrong));
  status.setAttribute("role", wrong ? "alert" : "status");
  if (wrong) status.scrollIntoView({ block: "nearest" });  // on a phone the button that led here is far below
};
const tool = () => find("input[name=tool]:checked").value;
const colour = (index) => props.colours[index % props.colours.length];
const brush = () => Math.max(2, Math.round(Math.max(state.width, state.height) / 40));
const publish = () => { props.value = { regions: state.regions }; };

// --- drawing -------------------------------------------------------------------------------------------------------

function words(region) {
  if (region.strokes) return "brush";
  const parts = [];
  if (region.box) parts.push("box " + region.box.map(Math.round).join(" "));
  if (region.points) parts.push((region.points.length > 1 ? region.points.length + " points" :
    "point " + region.points[0].map(Math.round).join(" ")));
  return parts.join(", ");
}

function drawRegion(region, index, scale) {
  const shade = colour(index), wide = Math.max(2, canvas.width / 320);
  pen.lineCap = pen.lineJoin = "round";
  if (region.box) {
    const [x1, y1, x2, y2] = region.box.map((x) => x * scale);
    for (const [style, width] of [["#000", wide + 2], [shade, wide]]) {
      pen.strokeStyle = style; pen.lineWidth = width; pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
  }
  if (region.strokes) {
    pen.globalAlpha = 0.55; pen.strokeStyle = shade; pen.lineWidth = region.brush * scale;
    for (const stroke of region.strokes) {
      pen.beginPath();
      stroke.forEach(([x, y], i) => (i ? pen.lineTo(x * scale, y * scale) : pen.moveTo(x * scale, y * scale)));
      if (stroke.length === 1) pen.lineTo(stroke[0][0] * scale + 0.1, stroke[0][1] * scale);
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }
  (region.points || []).forEach(([x, y], i) => {
    pen.beginPath();
    if (region.point_labels[i]) pen.arc(x * scale, y * scale, 3 * wide, 0, 7);
    else for (const d of [-1, 1]) {
      pen.moveTo((x * scale) - 3 * wide, y * scale - 3 * wide * d); pen.lineTo(x * scale + 3 * wide, y * scale + 3 * wide * d);
    }
    pen.lineWidth = wide * 1.6; pen.strokeStyle = "#000"; pen.stroke();
    if (region.point_labels[i]) { pen.fillStyle = shade; pen.fill(); pen.strokeStyle = "#fff"; }
    else pen.strokeStyle = shade;
    pen.lineWidth = wide * 0.8; pen.stroke();
  });
  const at = region.box ? region.box : region.strokes ? region.strokes[0][0] : region.points[0];
  const size = Math.max(14, canvas.width / 44), label = String(index + 1);
  pen.font = "600 " + size + "px system-ui, sans-serif";
  const left = Math.min(at[0] * scale, canvas.width - 1.4 * size), top = Math.max(at[1] * scale - 1.5 * size, 0);
  pen.fillStyle = "#121216"; pen.fillRect(left, top, pen.measureText(label).width + size, 1.4 * size);
  pen.fillStyle = shade; pen.fillRect(left, top, size / 4, 1.4 * size);
  pen.fillStyle = "#fff"; pen.fillText(label, left + size / 2, top + 1.05 * size);
}

function draw() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!state.image) return;
  const scale = canvas.width / state.width;
  pen.drawImage(state.image, 0, 0, canvas.width, canvas.height);
  state.regions.forEach((region, i) => drawRegion(region, state.known + i, scale));
  if (state.drag && state.drag.region) drawRegion(state.drag.region, state.known + state.regions.length, scale);
  if (state.cross) {
    const [x, y] = state.cross.map((v) => v * scale);
    if (state.corner) {
      const [a, b] = state.corner.map((v) => v * scale);
      pen.setLineDash([6, 4]); pen.lineWidth = 2; pen.strokeStyle = "#fff"; pen.strokeRect(a, b, x - a, y - b); pen.setLineDash([]);
    }
    for (const [style, width] of [["#000", 4], ["#fff", 2]]) {
      pen.beginPath(); pen.strokeStyle = style; pen.lineWidth = width;
      pen.moveTo(x - 14, y); pen.lineTo(x + 14, y); pen.moveTo(x, y - 14); pen.lineTo(x, y + 14); pen.stroke();
    }
  }
}

function list() {
  const items = find(".regions");
  items.replaceChildren(...state.regions.map((region, i) => {
    const item = document.createElement("li"), swatch = document.createElement("span"), text = document.createElement("span");
    const away = document.createElement("button"), name = "region" + (state.known + i + 1);
    swatch.className = "swatch"; swatch.style.background = colour(state.known + i);
    text.textContent = name + ": " + words(region);
    away.type = "button"; away.textContent = "×"; away.setAttribute("aria-label", "Remove " + name);
    away.onclick = () => { state.regions.splice(i, 1); changed(name + " removed."); canvas.focus(); };
    item.append(swatch, text, away);
    return item;
  }));
}

function changed(sentence) { list(); draw(); publish(); if (sentence) say(sentence); }

// --- marking -------------------------------------------------------------------------------------------------------

const inside = ([x, y]) => [Math.min(Math.max(x, 0), state.width), Math.min(Math.max(y, 0), state.height)];

function add(region) {
  const last = state.regions[state.regions.length - 1];
  const refines = find(".refine").checked || (region.points && !region.point_labels[0]);
  if (refines && last) {
    if (region.strokes && last.strokes) { last.strokes.push(...region.strokes); return changed("Brush stroke added."); }
    if (region.points && !last.strokes) {
      last.points = [...(last.points || []), ...region.points];
      last.point_labels = [...(last.point_labels || []), ...region.point_labels];
      return changed("Point added to region" + (state.known + state.regions.length) + ".");
    }
  }
  if (region.points && !region.point_labels[0]) return say("Mark the region first, then points outside it.", true);
  if (state.known + state.regions.length >= props.most_regions)
    return say("A conversation has at most " + props.most_regions + " regions.", true);
  state.regions.push(region);
  changed("region" + (state.known + state.regions.length) + ": " + words(region) + ".");
}

const point = (at) => ({ points: [at], point_labels: [tool() === "point" && find(".outside").checked ? 0 : 1] });
const boxOf = ([a, b], [x, y]) => [Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)];

function place(event) {
  const frame = canvas.getBoundingClientRect();
  return inside([(event.clientX - frame.left) / frame.width * state.width, (event.clientY - frame.top) / frame.height * state.height]);
}

canvas.onpointerdown = (event) => {
  if (!state.image || (event.pointerType === "mouse" && event.button !== 0)) return;
  canvas.setPointerCapture(event.pointerId);
  state.cross = state.corner = null;
  state.drag = { start: place(event), region: null };
  if (tool() === "paint") state.drag.region = { strokes: [[state.drag.start]], brush: brush() };
  draw();
};
canvas.onpointermove = (event) => {
  if (!state.drag) return;
  const at = place(event);
  if (tool() === "box") state.drag.region = { box: boxOf(state.drag.start, at) };
  if (tool() === "paint") state.drag.region.strokes[0].push(at);
  draw();
};
canvas.onpointerup = (event) => {
  if (!state.drag) return;
  const { start, region } = state.drag;
  state.drag = null;
  if (tool() === "point") return add(point(place(event)));
  if (tool() === "paint") return add(region);
  const box = boxOf(start, place(event));
  if (box[2] - box[0] < 2 || box[3] - box[1] < 2) { draw(); return say("Drag from one corner of the box to the other, or choose Point.", true); }
  add({ box });
};
canvas.onpointercancel = () => { state.drag = null; draw(); };

canvas.onkeydown = (event) => {
  if (!state.image || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(state.width / 64));
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (moves[event.key]) {
    const [x, y] = state.cross || [state.width / 2, state.height / 2];
    state.cross = inside([Math.round(x + moves[event.key][0]), Math.round(y + moves[event.key][1])]);
    if (state.drag && state.drag.region) state.drag.region.strokes[0].push(state.cross);
    say("Cross at " + state.cross.join(" ") + ".");
  } else if (event.key === "Enter" || event.key === " ") {
    const at = state.cross = state.cross || [Math.round(state.width / 2), Math.round(state.height / 2)];
    if (tool() === "point") add(point(at));
    else if (tool() === "paint") {
      if (state.drag) { const { region } = state.drag; state.drag = null; add(region); }
      else { state.drag = { region: { strokes: [[at]], brush: brush() } }; say("The brush is down: move it, then press Enter."); }
    } else if (!state.corner) { state.corner = at; say("First corner at " + at.join(" ") + ": move to the opposite one, then press Enter."); }
    else {
      const box = boxOf(state.corner, at);
      state.corner = null;
      if (box[2] > box[0] && box[3] > box[1]) add({ box }); else say("That box is empty: move the cross before you press Enter again.", true);
    }
  } else if (event.key === "Backspace" || event.key === "Delete") {
    if (state.regions.pop()) changed("The last region was removed.");
  } else if (event.key === "Escape") {
    state.drag = state.corner = state.cross = null;
  } else return;
  event.preventDefault();
  draw();
};

find(".typed").onsubmit = (event) => {
  event.preventDefault();
  if (!state.image) return say("Choose a picture first.", true);
  const field = find(".numbers"), numbers = field.value.trim().split(/[\s,;]+/).map(Number);
  if (![2, 4].includes(numbers.length) || numbers.some((x) => !Number.isFinite(x)))
    return say("Write four numbers for a box, x1 y1 x2 y2, or two for a point, x y.", true);
  const fits = (x, y) => x >= 0 && y >= 0 && x <= state.width && y <= state.height;
  if (!fits(numbers[0], numbers[1]) || (numbers.length === 4 && !fits(numbers[2], numbers[3])))
    return say("That lies outside the picture of " + state.width + " × " + state.height + " pixels.", true);
  if (numbers.length === 4 && (numbers[2] <= numbers[0] || numbers[3] <= numbers[1]))
    return say("A box is x1 y1 x2 y2 with x1 < x2 and y1 < y2: corners, not width and height.", true);
  if (numbers.length === 4 && numbers.every((x) => x <= 1) && numbers.some((x) => x % 1))
    return say("A box is in pixels: multiply x by " + state.width + " and y by " + state.height +
      " if these are shares of the picture.", true);
  field.value = "";
  add(numbers.length === 4 ? { box: numbers } : point(numbers));
};

// --- pictures ------------------------------------------------------------------------------------------------------

function send(file) {
  if (!file) return;
  if (file.size > props.most_bytes)
    return say("The file has " + (file.size / 1e6).toFixed(1) + " MB, expected at most " + props.most_bytes / 1e6 + " MB.", true);
  say("Sending the picture …");
  const reader = new FileReader();
  reader.onload = () => { props.value = { upload: reader.result }; trigger("upload"); };
  reader.onerror = () => say("The file could not be read.", true);
  reader.readAsDataURL(file);
}
find(".example").onclick = () => { say("Loading the example …"); trigger("select"); };
find(".file").onchange = (event) => { send(event.target.files[0]); event.target.value = ""; };
const stage = find(".stage");
stage.ondragover = (event) => { event.preventDefault(); stage.classList.add("over"); };
stage.ondragleave = () => stage.classList.remove("over");
stage.ondrop = (event) => { event.preventDefault(); stage.classList.remove("over"); send(event.dataTransfer.files[0]); };
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData ? event.clipboardData.files : [])].find((f) => f.type.startsWith("image/"));
  if (file) { event.preventDefault(); send(file); }
});

// --- the question --------------------------------------------------------------------------------------------------

// Enter asks and Shift+Enter starts a new line, as in other chats (in Gradio it is the other way round). An Enter that ends
// the composing of a word does neither.
for (const kind of ["keydown", "keypress"]) document.addEventListener(kind, (event) => {
  if (event.key !== "Enter" || event.isComposing || !event.target.closest || !event.target.closest("#question")) return;
  event.stopPropagation();
  if (event.shiftKey) return;
  event.preventDefault();
  if (kind === "keydown" && !event.repeat) document.querySelector("#ask").click();
}, true);

watch("value", () => {
  const got = props.value || {};
  if (got.error || got.sentence) { publish(); return say(got.error || got.sentence, Boolean(got.error)); }
  if (!("picture" in got)) return;
  const image = new Image();
  image.onload = () => {
    Object.assign(state, { image, width: got.width, height: got.height, known: got.known, regions: [], drag: null, corner: null });
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    canvas.setAttribute("aria-label", "Picture of " + got.width + " × " + got.height + " pixels, to mark regions on");
    changed(got.known ? "Ask more about these regions, or mark others." :
      "Picture of " + got.width + " × " + got.height + " pixels: mark a region.");
  };
  image.src = got.picture;
});
