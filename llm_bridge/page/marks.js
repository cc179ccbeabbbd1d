// The regions that were marked and not asked about yet, with what was undone and can be done again.
// A mark is what the server reads, {box, points, point_labels, strokes, brush}, and `seen`, the region that TAP answered.

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

  /** Note what TAP answered to a mark, wherever it is; that is no change of one's own. */
  see(mark, seen) {
    const noted = (list) => list.map((old) => (old.key === mark.key ? { ...old, seen } : old));
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

/** A mark with a further point or stroke; null if it cannot take it. */
export function refined(mark, part) {
  if (part.strokes && mark.strokes) return markOf({ ...mark, strokes: [...mark.strokes, ...part.strokes], seen: mark.seen });
  if (!part.points || mark.strokes) return null;
  return markOf({
    ...mark,
    points: [...(mark.points || []), ...part.points],
    point_labels: [...(mark.point_labels || []), ...part.point_labels],
  });
}

/** What the server is sent of a mark. */
export function sentOf({ box, points, point_labels, strokes, brush }) {
  return strokes ? { strokes, brush } : { ...(box && { box }), ...(points && { points, point_labels }) };
}

/** A mark in words. */
export function wordsOf(mark) {
  if (mark.strokes) return "brush";
  const parts = [];
  if (mark.box) parts.push("box " + mark.box.map(Math.round).join(" "));
  if (mark.points) parts.push(mark.points.length > 1 ? `${mark.points.length} points` : "point " + mark.points[0].map(Math.round).join(" "));
  return parts.join(", ");
}
