// The picture with its masks, and what mouse, finger and keys do on it.
// Marks are in pixels of the picture, the pointer in CSS pixels, masks in pixels of the screen, so that they are drawn sharply.

import { boxOf, drawCross, drawLine, drawPoint, isBox, moved, rounded } from "./marking.js";
import { maskOf, outlined } from "./masks.js";

const CLICK = 5;   // how many CSS pixels a pointer may wander in a click
const EDGE = 12;   // how many are left free around the picture
const FINE = 2, STRONG = 4;  // how many CSS pixels wide the line around a mask is, and around the one that is chosen

export class Board {
  /**
   * canvas: what is drawn on. page: what the board tells and asks: glance(part or null, mode), keep(part, mode), removeCurrent(),
   * say(words, wrong), mode() → "new" | "add" | "away", shade(i) → [r, g, b], regions() → [{mark, seen}], current() → which of
   * them is chosen, preview() → {seen, at} or null, `at` being the region that it would change.
   */
  constructor(canvas, page) {
    Object.assign(this, { canvas, page, picture: null, drag: null, cross: null, corner: null, waiting: false, fingers: 0 });
    this.pen = canvas.getContext("2d");
    this.layers = new WeakMap();  // what was seen → its mask as drawn
    new ResizeObserver(() => this.#fit()).observe(canvas.parentElement);
    this.#listen();
  }

  /** Show a picture {bitmap, width, height}, which TAP scales to a frame of `frame` pixels. */
  show(picture, frame) {
    Object.assign(this, { picture, frame, drag: null, cross: null, corner: null });
    this.canvas.setAttribute("aria-label", `Picture of ${picture.width} × ${picture.height} pixels, to point at`);
    this.#fit();
  }

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement, dense = window.devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [Math.round(width * dense), Math.round(height * dense)];
    this.layers = new WeakMap();
    if (this.picture) {
      const edge = EDGE * dense, { width: across, height: down } = this.picture;
      const scale = Math.min((this.canvas.width - 2 * edge) / across, (this.canvas.height - 2 * edge) / down);
      const [wide, high] = [across, down].map((length) => Math.max(1, Math.round(length * scale)));
      this.view = { dense, wide, high, x: Math.round((this.canvas.width - wide) / 2), y: Math.round((this.canvas.height - high) / 2) };
    }
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.#paint(); });
  }

  #paint() {
    const { pen, canvas, picture, page } = this;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!picture) return;
    const { x, y, wide, high } = this.view, preview = page.preview();
    pen.drawImage(picture.bitmap, x, y, wide, high);
    page.regions().forEach(({ mark, seen }, i) => {
      if (preview?.at !== i && seen) this.#lay(seen, page.shade(i), i === page.current() ? STRONG : FINE);
      mark.points.forEach((point, j) => drawPoint(pen, this.#onScreen(point), mark.labels[j], `rgb(${page.shade(i)})`, this.view.dense));
      if (mark.box && !seen) this.#drawBox(mark.box, page.shade(i));
    });
    if (preview) this.#lay(preview.seen, page.shade(preview.at ?? page.regions().length), STRONG);
    if (this.drag?.box) this.#drawBox(this.drag.box, [255, 255, 255]);
    if (this.cross) drawCross(pen, this.#onScreen(this.cross), this.view.dense);
    if (this.corner) this.#drawBox(boxOf(this.corner, this.cross), [255, 255, 255]);
  }

  #lay(seen, shade, line) {
    const { dense, x, y, wide, high } = this.view, key = [...shade, line].join();
    let layer = this.layers.get(seen);
    if (layer?.key !== key) {
      const mask = layer?.mask ?? maskOf(seen, this.picture, this.frame, wide, high);
      this.layers.set(seen, layer = { key, mask, canvas: outlined(mask, wide, high, shade, Math.round(line * dense)) });
    }
    this.pen.drawImage(layer.canvas, x, y);
  }

  #onScreen([x, y]) {
    const { x: left, y: top, wide, high } = this.view;
    return [left + (x / this.picture.width) * wide, top + (y / this.picture.height) * high];
  }

  #drawBox(box, shade) {
    const [x1, y1] = this.#onScreen(box), [x2, y2] = this.#onScreen(box.slice(2)), path = new Path2D();
    path.rect(x1, y1, x2 - x1, y2 - y1);
    drawLine(this.pen, path, `rgb(${shade})`, this.view.dense);
  }

  // --- the pointer -----------------------------------------------------------------------------------------------------

  /** Where an event is: in CSS pixels of the window, in pixels of the picture, and whether that is on the picture. */
  #at(event) {
    const frame = this.canvas.getBoundingClientRect(), { dense, x: left, y: top, wide, high } = this.view, { width, height } = this.picture;
    const x = (((event.clientX - frame.left) * dense - left) / wide) * width, y = (((event.clientY - frame.top) * dense - top) / high) * height;
    const inside = [[x, width], [y, height]].map(([value, most]) => Math.min(Math.max(value, 0), most));
    return { screen: [event.clientX, event.clientY], point: rounded(inside), isOn: x >= 0 && y >= 0 && x <= width && y <= height };
  }

  #mode(event) { return event.altKey ? "away" : this.page.mode(); }

  #hover({ point, isOn }, event) {
    const mode = this.#mode(event);
    this.page.glance(isOn ? partAt(point, mode) : null, mode);
  }

  #listen() {
    const { canvas } = this, act = (handler) => (event) => { if (this.picture) handler(event, this.#at(event)); };
    canvas.onpointerdown = act((event, at) => {
      canvas.setPointerCapture(event.pointerId);
      this.fingers++;
      this.cross = this.corner = null;
      if (this.fingers > 1 || event.button !== 0 || !at.isOn) { this.drag = null; return this.page.glance(null); }
      this.drag = { from: at };
      if (event.pointerType !== "mouse") this.#hover(at, event);  // a press shows what it would keep
    });
    canvas.onpointermove = act((event, at) => {
      if (!this.drag) { if (!this.fingers) this.#hover(at, event); return; }
      const { from } = this.drag, wandered = Math.hypot(at.screen[0] - from.screen[0], at.screen[1] - from.screen[1]);
      if (wandered <= CLICK && !this.drag.box) return;
      this.drag.box = boxOf(from.point, at.point);
      if (isBox(this.drag.box)) this.page.glance({ box: this.drag.box, points: [], labels: [] }, "new");
      this.draw();
    });
    canvas.onpointerup = act((event, at) => {
      this.fingers = Math.max(0, this.fingers - 1);
      const { drag } = this, mode = this.#mode(event);
      this.drag = null;
      if (!drag) return;
      if (!drag.box) this.page.keep(partAt(drag.from.point, mode), mode);
      else if (isBox(drag.box)) this.page.keep({ box: drag.box, points: [], labels: [] }, "new");
      if (event.pointerType !== "mouse" || !at.isOn) this.page.glance(null);  // a finger that was lifted points at nothing
      this.draw();
    });
    canvas.onpointercancel = act(() => { this.fingers = 0; this.drag = null; this.page.glance(null); });
    canvas.onpointerleave = act((event) => { if (event.pointerType === "mouse" && !this.drag) this.page.glance(null); });
    canvas.onkeydown = (event) => { if (this.picture && !event.ctrlKey && !event.metaKey) this.#key(event); };
    canvas.onblur = () => { if (this.cross) this.page.glance(null); this.cross = this.corner = null; this.draw(); };
  }

  // --- the keyboard ----------------------------------------------------------------------------------------------------

  #key(event) {
    const { width, height } = this.picture, move = moved(this.cross ?? [width / 2, height / 2], event, this.picture);
    if (move) {
      this.cross = move;
      if (!this.corner) this.#hover({ point: this.cross, isOn: true }, event);
      else if (isBox(boxOf(this.corner, this.cross))) this.page.glance({ box: boxOf(this.corner, this.cross), points: [], labels: [] }, "new");
      this.page.say(`Cross at ${this.cross.join(" ")}.`);
    } else if (event.key === "Enter" || event.key === " ") this.#set(event);
    else if (event.key === "b" || event.key === "B") this.#corner();
    else if (event.key === "Backspace" || event.key === "Delete") this.page.removeCurrent();
    else if (event.key === "Escape") { this.drag = this.corner = this.cross = null; this.page.glance(null); }
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }

  #corner() {
    this.corner = this.cross ??= [Math.round(this.picture.width / 2), Math.round(this.picture.height / 2)];
    this.page.say(`A box begins at ${this.corner.join(" ")}: move to its opposite corner, then press Enter.`);
  }

  #set(event) {
    this.cross ??= [Math.round(this.picture.width / 2), Math.round(this.picture.height / 2)];
    const { corner, cross } = this, mode = this.#mode(event);
    this.corner = null;
    if (!corner) this.page.keep(partAt(cross, mode), mode);
    else if (isBox(boxOf(corner, cross))) this.page.keep({ box: boxOf(corner, cross), points: [], labels: [] }, "new");
    else this.page.say("That box is empty: press B at one corner, move, and press Enter at the other.", true);
  }
}

const partAt = (point, mode) => ({ points: [point], labels: [mode === "away" ? 0 : 1] });
