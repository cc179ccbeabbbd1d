// The picture: shows it with its regions, and turns mouse, finger and keys into marks.
// Coordinates: marks and boxes are in pixels of the picture, masks in pixels of the shown one, the pointer in CSS pixels.

import { dimAllBut, drawBox, drawBrush, drawCorner, drawLabels, drawMark, drawRegion, drawStrokes } from "./drawing.js";
import { boxOf, drawCross, isBox, moved, rounded } from "./marking.js";  // the file lies in tap_tokenizer/browser

const BAR = 56;   // how many CSS pixels the bars at the top and the bottom take
const EDGE = 8;   // how many are left free at the sides
const CLICK = 5;  // how many CSS pixels a pointer may wander in a click

export class Board {
  /**
   * canvas: what is drawn on. page: what the board tells and asks of it: colour(i), nextColour(), mode() → "new" | "add" | "away",
   * tool(), glance({part, mode} or null), keep(part, mode), take(candidate), removeLast(), say(words, wrong),
   * regions() → [{region, mark, word}], candidates().
   */
  constructor(canvas, page) {
    this.canvas = canvas;
    this.page = page;
    this.pen = canvas.getContext("2d");
    this.picture = null;
    this.view = { scale: 1, x: 0, y: 0 };
    this.size = [0, 0];     // of the canvas, in CSS pixels
    this.isFitted = true;   // whether the view is the whole picture, as large as it fits
    this.preview = null;    // the region under the pointer, as TAP sees it
    this.lit = null;        // the number of the region whose name is pointed at
    this.drag = null;
    this.cross = null;      // where the keyboard points
    this.tip = null;        // where the mouse holds the brush
    this.corner = null;
    this.fingers = new Map();
    this.waiting = false;
    new ResizeObserver(() => this.#resize()).observe(canvas.parentElement);
    this.#listen();
  }

  // --- the view ------------------------------------------------------------------------------------------------------

  show(image, { width, height, shown_width }) {
    this.picture = { image, width, height, stretch: width / shown_width };
    this.preview = this.drag = this.cross = this.corner = null;
    this.canvas.setAttribute("aria-label", `Picture of ${width} × ${height} pixels, to mark regions on`);
    this.fit();
  }

  /** Show the whole picture. */
  fit() {
    this.isFitted = true;
    this.#resize();
  }

  /** Follow the size of the stage. A view that was chosen keeps its scale, and in its middle what was there. */
  #resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement, dense = window.devicePixelRatio || 1;
    const before = this.size;
    this.size = [width, height];
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    if (this.picture) {
      const { width: wide, height: high } = this.picture, fitting = Math.min((width - 2 * EDGE) / wide, (height - 2 * BAR) / high);
      this.least = fitting / 2;
      if (this.isFitted) this.view = { scale: fitting, x: (width - wide * fitting) / 2, y: (height - high * fitting) / 2 };
      else this.view = { ...this.view, x: this.view.x + (width - before[0]) / 2, y: this.view.y + (height - before[1]) / 2 };
    }
    this.draw();
  }

  zoom(factor, [x, y] = this.size.map((side) => side / 2)) {
    if (!this.picture) return;
    this.isFitted = false;
    const scale = Math.min(Math.max(this.view.scale * factor, this.least), this.least * 64), by = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * by, y: y - (y - this.view.y) * by };
    this.draw();
  }

  pan(x, y) {
    this.isFitted = false;
    this.view = { ...this.view, x: this.view.x + x, y: this.view.y + y };
    this.draw();
  }

  /** Move the picture until a point of it is in sight, between the bars. */
  #reveal(point) {
    const [x, y] = this.onScreen(point), [width, height] = this.size;
    const by = [Math.min(Math.max(x, EDGE), width - EDGE) - x, Math.min(Math.max(y, BAR), height - BAR) - y];
    if (by.some((far) => Math.abs(far) > 0.5)) this.pan(...by);  // less is rounding
  }

  inPicture([x, y]) {
    const { scale, x: left, y: top } = this.view, { width, height } = this.picture;
    return [Math.min(Math.max((x - left) / scale, 0), width), Math.min(Math.max((y - top) / scale, 0), height)];
  }

  covers([x, y]) {
    const { scale, x: left, y: top } = this.view, { width, height } = this.picture;
    return x >= left && y >= top && x <= left + width * scale && y <= top + height * scale;
  }

  onScreen([x, y]) { return [x * this.view.scale + this.view.x, y * this.view.scale + this.view.y]; }

  brush() { return Math.max(2, Math.round(Math.max(this.picture.width, this.picture.height) / 40)); }

  // --- drawing -------------------------------------------------------------------------------------------------------

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.#paint(); });
  }

  #paint() {
    const { pen, canvas, picture, preview } = this, dense = window.devicePixelRatio || 1;
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    if (!picture) return;
    const { scale, x, y } = this.view;
    pen.imageSmoothingEnabled = scale < 4;
    pen.drawImage(picture.image, x, y, picture.width * scale, picture.height * scale);
    pen.lineJoin = pen.lineCap = "round";
    const { colour, nextColour } = this.page, regions = this.page.regions(), candidates = this.page.candidates();
    const lit = regions[this.lit]?.region;
    if (candidates.length) dimAllBut(this, [...candidates, ...regions.map(({ region }) => region).filter(Boolean)]);
    else if (lit) dimAllBut(this, [lit], "#0006");
    for (const candidate of candidates) drawRegion(this, candidate, "#fff", candidate === this.hit ? "lit" : "offered");
    if (preview?.changes) {  // what is pointed at stands for the mark that it would change, if that is still there
      const changed = regions.findIndex(({ mark }) => mark?.key === preview.changes);
      if (changed >= 0) regions[changed] = { ...regions[changed], region: preview, word: preview.concept?.[0] };
    }
    regions.forEach(({ region, mark }, i) => {
      const how = region === preview ? "preview" : this.lit === i ? "lit" : this.lit === null ? "" : "faint";
      if (region) drawRegion(this, region, colour(i), how);
      else if (mark.box) drawBox(this, mark.box, colour(i));
      if (mark) drawMark(this, mark, colour(i), !region);
    });
    if (preview && !preview.changes) drawRegion(this, preview, nextColour(), "preview");
    if (this.drag?.box) drawBox(this, this.drag.box, nextColour());
    if (this.drag?.stroke) drawStrokes(this, this.#strokeOf(this.drag), nextColour());
    drawLabels(this, this.#labels(regions), BAR);
    if (this.tip) drawBrush(this, this.tip, this.brush(), this.page.mode() === "away" ? "#fff" : nextColour());
    if (this.cross && this.corner) drawCorner(this, this.corner, this.cross);
    if (this.cross) drawCross(pen, this.onScreen(this.cross));
  }

  /** A label for each region, with its number, and for what is pointed at. */
  #labels(regions) {
    const { colour, nextColour } = this.page, { preview } = this, many = regions.length > 8;
    const labels = regions.map(({ region, mark, word }, i) => {
      const at = mark?.points?.[0] || mark?.strokes?.[0][0];
      return { words: String(i + 1) + (word && !many ? " " + word : ""), colour: colour(i), box: region?.box || mark.box || [...at, ...at] };
    });
    if (preview?.concept && !preview.changes)
      labels.push({ words: `${preview.concept[0]} ${Math.round(100 * preview.concept[1])} %`, colour: nextColour(), box: preview.box });
    return labels;
  }

  // --- pointing ------------------------------------------------------------------------------------------------------

  /** The smallest of some regions that lies under a point of the picture. */
  under(regions, [x, y]) {
    const at = [x / this.picture.stretch, y / this.picture.stretch];
    this.pen.setTransform(1, 0, 0, 1, 0, 0);
    return regions.filter((region) => this.pen.isPointInPath(region.path, ...at, "evenodd")).sort((a, b) => a.area - b.area)[0];
  }

  forget() { this.preview = this.hit = this.tip = null; this.page.glance(null); this.draw(); }

  /** Lift the brush and drop the corner of a box that was begun; show nothing that is pointed at. */
  leaveOff() { this.drag = this.corner = null; this.forget(); }

  #at(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  }

  /** What a click or a stroke makes, with the keys that are held or as it was chosen. */
  #modeOf(event) { return event.altKey ? "away" : event.shiftKey ? "new" : this.page.mode(); }

  #point(at, event) {
    const mode = this.#modeOf(event);
    return { part: { points: [rounded(at)], point_labels: [mode === "away" ? 0 : 1] }, mode };
  }

  #strokeOf({ stroke, mode }) { return { strokes: [stroke.map(rounded)], stroke_labels: [mode === "away" ? 0 : 1], brush: this.brush() }; }

  #hover(event) {
    const on = this.#at(event);
    if (!this.covers(on)) { if (this.preview || this.hit || this.tip) this.forget(); return; }
    const at = this.inPicture(on);
    if (this.page.tool() === "brush" && event.pointerType === "mouse") { this.tip = at; this.draw(); }
    if (this.page.tool() === "point") this.page.glance(this.#point(at, event));
    if (this.page.tool() === "everything") {
      const hit = this.under(this.page.candidates(), at) || null;
      if (hit !== this.hit) { this.hit = hit; this.preview = hit; this.draw(); }
    }
  }

  #listen() {
    const { canvas } = this;
    canvas.onpointerdown = (event) => this.#down(event);
    canvas.onpointermove = (event) => this.#move(event);
    canvas.onpointerup = (event) => this.#up(event);
    canvas.onpointercancel = (event) => { this.fingers.delete(event.pointerId); this.leaveOff(); };
    canvas.onpointerleave = (event) => { if (event.pointerType === "mouse" && !this.drag) this.forget(); };
    canvas.oncontextmenu = (event) => event.preventDefault();  // its button moves the picture
    canvas.onkeydown = (event) => this.#key(event);
    canvas.onblur = () => {
      this.cross = null;
      if (!this.picture) return;
      if (this.fingers.size) this.forget(); else this.leaveOff();  // what a pointer has begun goes on
    };
    canvas.addEventListener("wheel", (event) => {
      if (!this.picture) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), this.#at(event));
    }, { passive: false });
  }

  #down(event) {
    if (!this.picture) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cross = this.corner = null;
    const on = this.#at(event);
    this.fingers.set(event.pointerId, on);
    if (this.fingers.size > 1) { this.drag = { pinch: true }; this.forget(); return; }  // two fingers zoom and move
    if (event.button === 1 || event.button === 2) { this.drag = { pan: on }; return; }
    if (event.button !== 0 || !this.covers(on)) return;
    const at = this.inPicture(on);
    this.drag = { start: at, on };
    if (this.page.tool() === "brush") Object.assign(this.drag, { stroke: [at], mode: this.#modeOf(event) });
    if (event.pointerType !== "mouse") this.#hover(event);  // a press shows what it would keep
    this.draw();
  }

  #move(event) {
    if (!this.picture) return;
    const on = this.#at(event), before = this.fingers.get(event.pointerId);
    if (before) this.fingers.set(event.pointerId, on);
    if (!this.drag) return this.fingers.size ? undefined : this.#hover(event);
    if (this.drag.pinch) return this.#pinch(event.pointerId, before, on);
    if (this.drag.pan) { this.pan(on[0] - this.drag.pan[0], on[1] - this.drag.pan[1]); this.drag.pan = on; return; }
    const at = this.inPicture(on), tool = this.page.tool();
    if (tool === "box") {
      this.drag.box = boxOf(this.drag.start, at);
      if (isBox(this.drag.box)) this.page.glance({ part: { box: this.drag.box }, mode: "new" });
    }
    if (tool === "brush") this.drag.stroke.push(at);
    if (tool === "point" || tool === "everything") this.#hover(event);
    this.draw();
  }

  #pinch(finger, before, on) {
    const other = [...this.fingers].find(([id]) => id !== finger)?.[1];
    if (!other || !before) return;
    const apart = ([x, y]) => Math.max(8, Math.hypot(x - other[0], y - other[1]));
    this.zoom(apart(on) / apart(before), [(before[0] + other[0]) / 2, (before[1] + other[1]) / 2]);
    this.pan((on[0] - before[0]) / 2, (on[1] - before[1]) / 2);
  }

  #up(event) {
    this.fingers.delete(event.pointerId);
    const { drag } = this;
    if (!drag || drag.pinch) { if (!this.fingers.size) this.drag = null; return; }
    this.drag = null;
    if (drag.pan) return this.draw();
    const on = this.#at(event), tool = this.page.tool();
    if (drag.stroke) return this.page.keep(this.#strokeOf(drag), drag.mode);
    if (tool === "box") {
      const box = boxOf(drag.start, this.inPicture(on));
      if (isBox(box)) return this.page.keep({ box }, "new");
      this.forget();
      return this.page.say("Drag from one corner of the box to the other, or choose Point.", true);
    }
    if (!this.covers(on)) return this.forget();
    if (tool === "everything") {
      const hit = this.under(this.page.candidates(), this.inPicture(on));
      return hit ? this.page.take(hit) : this.page.say("TAP found nothing here: choose Point to mark it yourself.");
    }
    const moved = event.pointerType === "mouse" && Math.hypot(on[0] - drag.on[0], on[1] - drag.on[1]) <= CLICK;
    const { part, mode } = this.#point(moved ? drag.start : this.inPicture(on), event);
    this.page.keep(part, mode);
    if (event.pointerType !== "mouse") this.forget();  // a finger that was lifted points at nothing
  }

  // --- keys ----------------------------------------------------------------------------------------------------------

  #key(event) {
    if (!this.picture || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape" && document.querySelector(":popover-open")) return;  // which the browser closes
    const tool = this.page.tool(), move = moved(this.#crossed(), event, this.picture);
    if (move) {
      this.cross = move;
      this.#reveal(move);
      this.drag?.stroke?.push(this.cross);
      if (tool === "point") this.page.glance(this.#point(this.cross, { altKey: event.altKey }));
      if (tool === "box" && this.corner && isBox(boxOf(this.corner, this.cross)))
        this.page.glance({ part: { box: boxOf(this.corner, this.cross) }, mode: "new" });
      if (tool === "everything") { this.hit = this.preview = this.under(this.page.candidates(), this.cross) || null; }
      this.page.say(`Cross at ${this.cross.join(" ")}.`);
    } else if (event.key === "Enter" || event.key === " ") this.#set(tool, event);
    else if (event.key === "Backspace" || event.key === "Delete") this.page.removeLast();
    else if (event.key === "Escape") { this.cross = null; this.leaveOff(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }

  /** Where the keyboard points; at first, to the middle of what is seen. */
  #crossed() { return this.cross || this.inPicture(this.size.map((side) => side / 2)).map(Math.round); }

  #set(tool, event) {
    const at = this.cross = this.#crossed();
    if (tool === "point") { const { part, mode } = this.#point(at, event); return this.page.keep(part, mode); }
    if (tool === "everything") { const hit = this.under(this.page.candidates(), at); return hit && this.page.take(hit); }
    if (tool === "brush") {
      if (this.drag) { const { drag } = this; this.drag = null; return this.page.keep(this.#strokeOf(drag), drag.mode); }
      this.drag = { stroke: [at], mode: this.#modeOf(event) };
      return this.page.say("The brush is down: move it, then press Enter.");
    }
    if (!this.corner) { this.corner = at; return this.page.say(`First corner at ${at.join(" ")}: move to the opposite one, then press Enter.`); }
    const box = boxOf(this.corner, at);
    this.corner = null;
    return isBox(box) ? this.page.keep({ box }, "new") : this.page.say("That box is empty: move the cross before you press Enter again.", true);
  }
}
