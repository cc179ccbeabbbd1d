// Where labels stand: near their region, inside the picture, and out of each other's way.

const overlap = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

/** Labels {box, width, height, …} with the place {x, y} of each, in a frame [width, height] whose top and bottom bars cover. */
export function placeLabels(labels, [wide, high], bar) {
  const taken = [];
  return labels.map((label) => {
    const { box: [x1, y1, x2, y2], width, height } = label, middle = (x1 + x2 - width) / 2, gap = 4;
    const places = [
      [x1, y1 - height - gap], [middle, y1 - height - gap], [x2 - width, y1 - height - gap],
      [x1, y2 + gap], [middle, y2 + gap], [x2 - width, y2 + gap], [x2 + gap, y1], [x1 - width - gap, y1],
      [x2 + gap, y2 - height], [x1 - width - gap, y2 - height], [x1, y1 - 2 * height - 2 * gap], [x1, y2 + height + 2 * gap],
    ];
    let best = null, least = Infinity;
    for (const [left, top] of places) {
      const x = Math.min(Math.max(left, 2), wide - width - 2), y = Math.min(Math.max(top, bar), high - height - bar);
      const frame = [x, y, x + width, y + height];
      let cost = Math.hypot(x - left, y - top);
      for (const other of taken) cost += 100 * overlap(frame, other);
      for (const other of labels) cost += overlap(frame, other.box) / 40;  // better not on another object
      if (cost < least) { least = cost; best = frame; }
      if (!cost) break;
    }
    taken.push(best);
    return { ...label, x: best[0], y: best[1] };
  });
}
