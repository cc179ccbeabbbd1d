// How regions, marks and labels look on the picture. `board` is what is drawn on: its pen, picture, view and onScreen().

import { placeLabels } from "./labels.js";

/** Darken the picture where none of some regions is. */
export function dimAllBut({ pen, picture, view }, regions) {
  const scale = view.scale * picture.stretch, lit = new Path2D();
  for (const { path } of regions) lit.addPath(path, new DOMMatrix([scale, 0, 0, scale, view.x, view.y]));
  const frame = [view.x, view.y, picture.width * view.scale, picture.height * view.scale];
  pen.fillStyle = "#0009";
  pen.fillRect(...frame);
  pen.save();
  pen.clip(lit);  // where regions overlap, too: outlines run the other way only around holes
  pen.drawImage(picture.image, ...frame);
  pen.restore();
}

/** A region with its outline; how: "lit", "preview", "offered", "faint", or "" as usual. */
export function drawRegion({ pen, picture, view }, region, colour, how) {
  const scale = view.scale * picture.stretch;
  pen.save();
  pen.translate(view.x, view.y);
  pen.scale(scale, scale);
  pen.fillStyle = colour;
  pen.globalAlpha = { lit: 0.32, preview: 0.22, offered: 0, faint: 0.03 }[how] ?? 0.09;
  pen.fill(region.path, "evenodd");
  const wide = how === "lit" ? 3.5 : how === "faint" ? 1.2 : 2.2;
  pen.globalAlpha = how === "faint" ? 0.7 : 1;
  for (const [style, width] of [["#0008", wide + 1.6], [colour, wide]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width / scale;
    pen.stroke(region.path);
  }
  pen.restore();
}

export function drawBox(board, box, colour) {
  const { pen } = board, [x1, y1] = board.onScreen(box), [x2, y2] = board.onScreen(box.slice(2));
  for (const [style, width] of [["#0009", 4], [colour, 2]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

/** Strokes in a colour where they paint, and in white where they erase. */
export function drawStrokes(board, { strokes, stroke_labels: labels, brush }, colour) {
  const { pen } = board;
  pen.save();
  pen.globalAlpha = 0.45;
  pen.lineWidth = brush * board.view.scale;
  for (const [number, stroke] of strokes.entries()) {
    pen.strokeStyle = labels[number] ? colour : "#fff";
    pen.beginPath();
    stroke.map((at) => board.onScreen(at)).forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    if (stroke.length === 1) pen.lineTo(board.onScreen(stroke[0])[0] + 0.1, board.onScreen(stroke[0])[1]);
    pen.stroke();
  }
  pen.restore();
}

/** The outline of a brush that the mouse holds at a point. */
export function drawBrush(board, at, brush, colour) {
  const { pen } = board, [x, y] = board.onScreen(at);
  for (const [style, width] of [["#000", 3], [colour, 1.5]]) {
    pen.beginPath();
    pen.arc(x, y, Math.max(3, brush * board.view.scale / 2), 0, 7);
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.stroke();
  }
}

/** The points of a mark; its strokes only until TAP has seen them. */
export function drawMark(board, mark, colour, isUnseen) {
  const { pen } = board;
  if (mark.strokes && isUnseen) drawStrokes(board, mark, colour);
  (mark.points || []).forEach((at, i) => {
    const [x, y] = board.onScreen(at);
    pen.beginPath();
    pen.arc(x, y, 6, 0, 7);
    pen.fillStyle = mark.point_labels[i] ? colour : "#fff";
    pen.fill();
    pen.lineWidth = 1.5;
    pen.strokeStyle = "#000";
    pen.stroke();
    pen.beginPath();  // + adds to the region, − takes away from it
    pen.moveTo(x - 3, y); pen.lineTo(x + 3, y);
    if (mark.point_labels[i]) { pen.moveTo(x, y - 3); pen.lineTo(x, y + 3); }
    pen.stroke();
  });
}

/** Labels {words, colour, box}, beside their boxes; bar: how much of the canvas is covered at its top and bottom. */
export function drawLabels(board, labels, bar) {
  const { pen, canvas } = board;
  pen.font = "600 13px system-ui, sans-serif";
  const wanted = labels.map(({ words, colour, box }) => ({
    words, colour, box: [...board.onScreen(box), ...board.onScreen(box.slice(2))], width: pen.measureText(words).width + 18, height: 21,
  }));
  for (const { x, y, words, colour, width, height } of placeLabels(wanted, [canvas.clientWidth, canvas.clientHeight], bar)) {
    pen.fillStyle = "#15151ae6";
    pen.beginPath(); pen.roundRect(x, y, width, height, 6); pen.fill();
    pen.fillStyle = colour;
    pen.beginPath(); pen.roundRect(x, y, 6, height, [6, 0, 0, 6]); pen.fill();
    pen.fillStyle = "#fff";
    pen.fillText(words, x + 11, y + 15);
  }
}

/** The keyboard's cross, with the box that it would make with a corner that was set before. */
export function drawCross(board, cross, corner) {
  const { pen } = board, [x, y] = board.onScreen(cross);
  if (corner) {
    const [a, b] = board.onScreen(corner);
    pen.setLineDash([6, 4]);
    pen.lineWidth = 2;
    pen.strokeStyle = "#fff";
    pen.strokeRect(a, b, x - a, y - b);
    pen.setLineDash([]);
  }
  for (const [style, width] of [["#000", 4], ["#fff", 2]]) {
    pen.beginPath();
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.moveTo(x - 14, y); pen.lineTo(x + 14, y); pen.moveTo(x, y - 14); pen.lineTo(x, y + 14);
    pen.stroke();
  }
}
