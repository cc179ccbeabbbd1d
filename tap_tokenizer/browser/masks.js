// Mask logits over the model frame → masks over the picture, at any size: bilinear to the frame, then to the picture, at once.

import { scaledSize } from "./pictures.js";

/** A mask of `wide` × `high` pixels over a whole picture {width, height}, row by row, from logits (side × side). */
export function maskOf({ logits, side }, { width, height }, frame, wide, high) {
  const [across, down] = scaledSize(width, height, frame);
  const columns = places(side, frame, across, wide), rows = places(side, frame, down, high);
  const narrow = new Float32Array(side * wide), mask = new Uint8Array(wide * high);
  for (let y = 0; y < side; y++)
    for (let x = 0; x < wide; x++) {
      const from = y * side + columns.first[x], w = 3 * x;
      narrow[y * wide + x] =
        columns.weights[w] * logits[from] + columns.weights[w + 1] * logits[from + 1] + columns.weights[w + 2] * logits[from + 2];
    }
  for (let y = 0; y < high; y++) {
    const [a, b, c] = rows.weights.subarray(3 * y, 3 * y + 3);
    for (let x = 0, from = rows.first[y] * wide; x < wide; x++, from++)
      mask[y * wide + x] = a * narrow[from] + b * narrow[from + wide] + c * narrow[from + 2 * wide] > 0;
  }
  return mask;
}

/** For each of `wanted` places along a side: the first of three neighbouring logits, and the weights of the three.
 *  The logits lie over the frame, whose first `part` pixels are the picture. */
function places(side, frame, part, wanted) {
  const first = new Int32Array(wanted), weights = new Float32Array(3 * wanted);
  for (let i = 0; i < wanted; i++) {
    const [pixel, , share] = between(i, part, wanted), next = Math.min(pixel + 1, part - 1);
    first[i] = Math.max(0, Math.min(between(pixel, side, frame)[0], side - 3));
    for (const [at, weight] of [[pixel, 1 - share], [next, share]]) {
      const [low, high, rest] = between(at, side, frame);
      weights[3 * i + low - first[i]] += weight * (1 - rest);
      weights[3 * i + high - first[i]] += weight * rest;
    }
  }
  return { first, weights };
}

/** Where the middle of pixel `i` of `wanted` lies between two of `length`: both, and the share of the second. */
function between(i, length, wanted) {
  const at = Math.max(0, ((i + 0.5) * length) / wanted - 0.5), low = Math.min(Math.floor(at), length - 1);
  return [low, Math.min(low + 1, length - 1), at - low];
}

const VEIL = 13;  // of 255: how much of a mask's colour covers it, so little that the object keeps its own
const RIM = [0, 0, 0, 140];  // of a line, on its inner side, so that it is seen on light pictures, too

/** A mask as a picture to lay over another: a line along its edge, so many pixels wide. shade: red, green, blue. */
export function outlined(mask, wide, high, shade, line) {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d"), image = new ImageData(wide, high);
  const isNear = (x, y, at, far) => x < far || y < far || x >= wide - far || y >= high - far ||
    !mask[at - far] || !mask[at + far] || !mask[at - far * wide] || !mask[at + far * wide];
  const edge = [...shade, 255], veil = [...shade, VEIL];
  for (let y = 0, at = 0; y < high; y++)
    for (let x = 0; x < wide; x++, at++)
      if (mask[at]) image.data.set(!isNear(x, y, at, line + 1) ? veil : isNear(x, y, at, line) ? edge : RIM, 4 * at);
  [canvas.width, canvas.height] = [wide, high];
  pen.putImageData(image, 0, 0);
  return canvas;
}

/** A mask as COCO writes it: column by column, how many pixels are off, on, off, … */
export function runsOf(mask, wide, high) {
  const counts = [];
  let on = 0, run = 0;
  for (let x = 0; x < wide; x++)
    for (let y = 0; y < high; y++) {
      if (mask[y * wide + x] !== on) { counts.push(run); on = 1 - on; run = 0; }
      run++;
    }
  return { size: [high, wide], counts: [...counts, run] };
}

/** The box around a mask, xyxy; null if it is empty. */
export function boxOfMask(mask, wide) {
  let [x1, y1, x2, y2] = [Infinity, Infinity, 0, 0];
  mask.forEach((on, at) => {
    if (!on) return;
    const x = at % wide, y = (at - x) / wide;
    [x1, y1, x2, y2] = [Math.min(x1, x), Math.min(y1, y), Math.max(x2, x + 1), Math.max(y2, y + 1)];
  });
  return x2 ? [x1, y1, x2, y2] : null;
}
