// A picture's file → what TAP's encoder reads: the same numbers that the Python package makes with Pillow.

/** Read a file: {bitmap, pixels, width, height}; upright, over white, RGBA bytes, colours as they are written. */
export async function openPicture(file) {
  let bitmap;
  try { bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" }); }
  catch { throw new Error("The file is not a picture that this browser reads: choose a PNG, JPEG or WebP."); }
  const { width, height } = bitmap;
  try {
    const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, width, height);
    pen.drawImage(bitmap, 0, 0);
    return { bitmap, pixels: pen.getImageData(0, 0, width, height).data, width, height };
  } catch { throw new Error(`The picture of ${width} × ${height} pixels is too large for this browser: make it smaller.`); }
}

/** The size to which a picture is scaled in a frame of `side` pixels. */
export function scaledSize(width, height, side) {
  const scale = side / Math.max(width, height);
  return [width, height].map((length) => Math.max(1, Math.floor(length * scale + 0.5)));
}

/** Pixel values (3, S, S): scaled until the long side fills the frame, normalised; zeros, which the graph knows, fill up. */
export function frameOf({ pixels, width, height }, { image_size: side, mean, std }) {
  const [wide, high] = scaledSize(width, height, side), scaled = resized(pixels, width, height, wide, high);
  const frame = new Float32Array(3 * side * side);
  for (let channel = 0; channel < 3; channel++) {
    const values = Float32Array.from({ length: 256 }, (_, byte) => (byte - mean[channel]) / std[channel]);
    for (let y = 0; y < high; y++)
      for (let x = 0; x < wide; x++) frame[(channel * side + y) * side + x] = values[scaled[4 * (y * wide + x) + channel]];
  }
  return frame;
}

const BITS = 22;  // of the fraction of a weight, as in Pillow

/** Scale RGBA bytes as Pillow's BILINEAR does: a triangle as wide as the step, whole-number weights, first across, then down. */
export function resized(pixels, width, height, wide, high) {
  const across = width === wide ? pixels : along(pixels, triangles(width, wide), 4, height, 4 * width, 4 * wide);
  return height === high ? across : along(across, triangles(height, high), 4 * wide, wide, 4, 4);
}

/** For each of `wanted` places, the first of the `length` that it is made of, and the weights of those from there on. */
function triangles(length, wanted) {
  const step = length / wanted, reach = Math.max(step, 1);
  return Array.from({ length: wanted }, (_, i) => {
    const middle = (i + 0.5) * step, first = Math.max(0, Math.trunc(middle - reach + 0.5));
    const end = Math.min(length, Math.trunc(middle + reach + 0.5));
    const weights = Array.from({ length: end - first }, (_, j) => Math.max(0, 1 - Math.abs((first + j - middle + 0.5) / reach)));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => Math.trunc(0.5 + (weight / sum) * (1 << BITS))) };
  });
}

/** Scale one side: each place of a line becomes the weighted sum of others. `step`: how many bytes lie from place to place;
 *  `from` and `to`: from line to line, before and after. */
function along(bytes, places, step, lines, from, to) {
  const out = new Uint8ClampedArray(lines * places.length * 4);
  for (let line = 0; line < lines; line++)
    places.forEach(({ first, weights }, place) => {
      let red = 1 << (BITS - 1), green = red, blue = red, at = line * from + first * step;
      for (const weight of weights) {
        red += weight * bytes[at];
        green += weight * bytes[at + 1];
        blue += weight * bytes[at + 2];
        at += step;
      }
      at = line * to + place * step;
      out[at] = red >> BITS;
      out[at + 1] = green >> BITS;
      out[at + 2] = blue >> BITS;
    });
  return out;
}
