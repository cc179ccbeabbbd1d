// Masks as the server sends them: runs inside a box, in pixels of the shown picture → outlines that can be drawn at any zoom.

/** Which pixels of a mask's box are on, row by row. */
function bitsOf({ width, height, runs }) {
  const bits = new Uint8Array(width * height);
  let at = 0, on = false;
  for (const run of runs) {
    if (on) bits.fill(1, at, at + run);
    at += run;
    on = !on;
  }
  return bits;
}

const SMOOTHINGS = 3;  // after which an outline lies less than a pixel from where it was

/** A closed line with each point moved towards its neighbours. */
function smoothed(line) {
  return line.map(([x, y], i) => {
    const [a, b] = line[(i + line.length - 1) % line.length], [c, d] = line[(i + 1) % line.length];
    return [(a + 2 * x + c) / 4, (b + 2 * y + d) / 4];
  });
}

/** The edge of a mask as a path: through the middles of its pixels' sides, smoothed, so that steps become slopes. */
export function outlineOf(mask) {
  const { width, height } = mask, bits = bitsOf(mask), path = new Path2D(), row = width + 1;
  const on = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[y * width + x];
  const next = new Map();  // from each corner of the edge to those that follow it, with the mask on the right
  const side = (from, to) => { const others = next.get(from); if (others) others.push(to); else next.set(from, [to]); };
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!on(x, y)) continue;
      const corner = y * row + x;
      if (!on(x, y - 1)) side(corner, corner + 1);
      if (!on(x + 1, y)) side(corner + 1, corner + 1 + row);
      if (!on(x, y + 1)) side(corner + 1 + row, corner + row);
      if (!on(x - 1, y)) side(corner + row, corner);
    }
  }
  const x = (corner) => mask.x + corner % row, y = (corner) => mask.y + Math.floor(corner / row);
  for (const [start, ends] of next) {
    while (ends.length) {
      const loop = [start];
      for (let at = ends.pop(); at !== start; at = next.get(at).pop()) loop.push(at);
      let line = loop.map((corner, i) => {
        const after = loop[(i + 1) % loop.length];
        return [(x(corner) + x(after)) / 2, (y(corner) + y(after)) / 2];
      });
      for (let round = 0; round < SMOOTHINGS && loop.length > 16; round++) line = smoothed(line);
      line.forEach(([px, py], i) => (i ? path.lineTo(px, py) : path.moveTo(px, py)));
      path.closePath();
    }
  }
  return path;
}

/** A region as the server describes it, ready to be drawn: {box, path, concept, area}; of one that was found, its prompt, too. */
export function readRegion({ box, mask, concept, name, prompt, probability }) {
  return { box, concept, name, prompt, probability, path: outlineOf(mask), area: (box[2] - box[0]) * (box[3] - box[1]) };
}
