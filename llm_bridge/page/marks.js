// The regions that were marked but not asked about yet, with what can be undone and redone.
// A mark is what the server reads, {box, points, point_labels, strokes, stroke_labels, brush}, and what TAP answered: `seen`, the
// region, and `look`, its words.

export class Marks {
  /** changed: called after every change. */
  constructor(changed) {
    this.changed = changed;
    this.past = [[]];
    this.future = [];
  }

  get list() { return this.past[this.past.length - 1]; }
  get canUndo() { return this.past.length > 1; }
  get canRedo() { return this.future.length > 0; }

  /** Begin anew, with nothing to undo. */
  clear(list = []) {
    this.past = [list];
    this.future = [];
    this.changed();
  }

  #become(list) {
    this.past.push(list);
    this.future = [];
    this.changed();
  }

  add(mark) { this.#become([...this.list, mark]); }
  addAll(marks) { if (marks.length) this.#become([...this.list, ...marks]); }
  replace(index, mark) { this.#become(this.list.map((old, i) => (i === index ? mark : old))); }
  remove(index) { this.#become(this.list.filter((_, i) => i !== index)); }

  /** Note what TAP answered to a mark, {seen} or {look}, wherever it is; this is not a change that can be undone. */
  note(mark, answer) {
    const noted = (list) => list.map((old) => (old.key === mark.key ? { ...old, ...answer } : old));
    this.past = this.past.map(noted);
    this.future = this.future.map(noted);
    this.changed();
  }

  undo() { if (this.canUndo) { this.future.push(this.past.pop()); this.changed(); } }
  redo() { if (this.canRedo) { this.past.push(this.future.pop()); this.changed(); } }
}

let made = 0;

/** A mark; its key tells it from every other, and from what it was before it was refined. */
export function markOf(parts) { return { ...parts, key: ++made }; }

/** The mark of a region that TAP found by itself: it is asked about by the prompt whose mask is shown. */
export function foundMark(region) { return markOf({ ...region.prompt, seen: region }); }

/** A mark with further points or strokes, about which TAP has not been asked; null if it cannot take them, as with a box. */
export function refined(mark, part) {
  const { strokes, stroke_labels } = part, unasked = { ...mark, seen: undefined, look: undefined };
  if (strokes && mark.strokes)
    return markOf({ ...unasked, strokes: [...mark.strokes, ...strokes], stroke_labels: [...mark.stroke_labels, ...stroke_labels] });
  const points = strokes ? pointsOn(strokes[0]) : part.points, labels = strokes ? points.map(() => stroke_labels[0]) : part.point_labels;
  if (!points) return null;
  return markOf({ ...unasked, points: [...(mark.points || []), ...points], point_labels: [...(mark.point_labels || []), ...labels] });
}

/** A stroke as up to three points on it: how a brush refines a mark that was not painted. */
function pointsOn(stroke) {
  const places = new Set([1 / 6, 1 / 2, 5 / 6].map((part) => Math.floor(part * stroke.length)));
  return [...places].map((place) => stroke[place]);
}

/** What the server is sent of a mark. */
export function sentOf({ box, points, point_labels, strokes, stroke_labels, brush }) {
  return { ...(box && { box }), ...(points && { points, point_labels }), ...(strokes && { strokes, stroke_labels, brush }) };
}
