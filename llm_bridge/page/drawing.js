// How regions, marks and labels look on the picture. `board` is what is drawn on: its pen, picture, view and onScreen().

import { placeLabels } from "./labels.js";
import { drawLine, drawPoint } from "./marking.js";  // the file lies in tap_tokenizer/browser

const VEIL = 0.05;  // how much of a region's colour covers it: so little that the object keeps its own
const SHOWN = 0.4;  // how much covers what is only pointed at, so that nobody takes it for kept

/** Darken the picture, by default a lot, where none of some regions is. */
export function dimAllBut({ pen, picture, view }, regions, shade = "#0009") {
  const scale = view.scale * picture.stretch, lit = new Path2D();
  for (const { path } of regions) lit.addPath(path, new DOMMatrix([scale, 0, 0, scale, view.x, view.y]));
  const frame = [view.x, view.y, picture.width * view.scale, picture.height * view.scale];
  pen.fillStyle = shade;
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
  pen.globalAlpha = { offered: 0, preview: SHOWN }[how] ?? VEIL;
  pen.fill(region.path, "evenodd");
  const wide = { lit: 3.5, preview: 2.2, faint: 1.2 }[how] ?? 2.2;
  pen.globalAlpha = how === "faint" ? 0.7 : 1;
  const rims = how === "preview" ? [["#0008", wide + 3.6], ["#fff", wide + 2]] : [["#0008", wide + 1.6]];  // seen on its own colour, too
  for (const [style, width] of [...rims, [colour, wide]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width / scale;
    pen.stroke(region.path);
  }
  pen.restore();
}

export function drawBox(board, box, colour) {
  const [x1, y1] = board.onScreen(box), [x2, y2] = board.onScreen(box.slice(2)), path = new Path2D();
  path.rect(x1, y1, x2 - x1, y2 - y1);
  drawLine(board.pen, path, colour);
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
  if (mark.strokes && isUnseen) drawStrokes(board, mark, colour);
  (mark.points || []).forEach((at, i) => drawPoint(board.pen, board.onScreen(at), mark.point_labels[i], colour));
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

/** The box between a corner that the keyboard has set and its cross, which would be the other one. */
export function drawCorner(board, corner, cross) {
  const { pen } = board, [a, b] = board.onScreen(corner), [x, y] = board.onScreen(cross);
  pen.setLineDash([6, 4]);
  pen.lineWidth = 2;
  pen.strokeStyle = "#fff";
  pen.strokeRect(a, b, x - a, y - b);
  pen.setLineDash([]);
}
