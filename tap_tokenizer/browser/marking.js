// What is marked on a picture: boxes, points, and the keyboard's cross, how they are drawn, and their words.
// llm_bridge's page loads this file, too. `dense`: how many pixels of the canvas a CSS pixel has where its pen is not scaled.

export const rounded = (values) => values.map((value) => Math.round(value * 10) / 10);

/** The box xyxy between two corners. */
export const boxOf = ([a, b], [x, y]) => rounded([Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)]);

export const isBox = ([x1, y1, x2, y2]) => x2 - x1 >= 2 && y2 - y1 >= 2;

/** Where an arrow key moves a cross on a picture: by a 64th of its longer side or, with Shift, by a pixel; null for other keys. */
export function moved([x, y], { key, shiftKey }, { width, height }) {
  const step = shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 64));
  const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[key];
  const within = (value, most) => Math.min(Math.max(Math.round(value), 0), most);
  return by ? [within(x + by[0], width), within(y + by[1], height)] : null;
}

/** Draw a path as a line with a dark rim. */
export function drawLine(pen, path, colour, dense = 1) {
  for (const [style, width] of [["#000a", 4], [colour, 2]]) {
    [pen.strokeStyle, pen.lineWidth] = [style, width * dense];
    pen.stroke(path);
  }
}

/** Draw a dot with + where the region is, and − where it is not. */
export function drawPoint(pen, [x, y], isOn, colour, dense = 1) {
  const arm = 3 * dense;
  pen.beginPath();
  pen.arc(x, y, 6 * dense, 0, 7);
  pen.fillStyle = isOn ? colour : "#fff";
  pen.fill();
  [pen.strokeStyle, pen.lineWidth] = ["#000", 1.5 * dense];
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x - arm, y); pen.lineTo(x + arm, y);
  if (isOn) { pen.moveTo(x, y - arm); pen.lineTo(x, y + arm); }
  pen.stroke();
}

export function drawCross(pen, [x, y], dense = 1) {
  const arm = 14 * dense, path = new Path2D();
  path.moveTo(x - arm, y); path.lineTo(x + arm, y); path.moveTo(x, y - arm); path.lineTo(x, y + arm);
  drawLine(pen, path, "#fff", dense);
}

/** A mark {box, points, strokes} in words. */
export function wordsOf({ box, points, strokes }) {
  const parts = strokes ? ["brush"] : [];
  if (box) parts.push(`box ${box.map(Math.round).join(" ")}`);
  if (points?.length) parts.push(points.length > 1 ? `${points.length} points` : `point ${points[0].map(Math.round).join(" ")}`);
  return parts.join(", ");
}
