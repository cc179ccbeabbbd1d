// Downloads: a record for scripts, and a picture that shows regions and talk; both with what was marked and not asked about yet.

import { sentOf } from "./marks.js";
import { call, download } from "./server.js";

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const sent = ({ marks }) => ({ regions: marks.list.map(sentOf) });

export async function saveRecord(page) {
  save(new Blob([JSON.stringify(await call("record", sent(page)), null, 1)], { type: "application/json" }), "conversation.json");
}

const LEAST = 1 / 16;  // the smallest part of a picture's size at which it is saved

/** The picture with its regions, and beneath it what was said: at the picture's own size, or at the part of it that is returned. */
export async function savePicture(page) {
  const picture = await createImageBitmap(await download("drawing", sent(page))).catch(tooLarge);
  for (let scale = 1; scale >= LEAST; scale /= 2) {
    const blob = await drawn(page, picture, scale);
    if (blob) { save(blob, "conversation.png"); return scale; }
  }
  return tooLarge();
}

function tooLarge() { throw new Error("The picture is too large for this browser to save: save the record for scripts instead."); }

/** A PNG of the picture and what was said; null if it exceeds what the browser can draw. */
async function drawn(page, picture, scale) {
  const width = Math.max(picture.width, 480), size = Math.max(15, Math.round(width / 40)), edge = size;
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  const lines = linesOf(page.find("talk"), page.settings.model).flatMap(({ words, font, shade, gap }) => {
    pen.font = `${font} ${size}px system-ui, sans-serif`;
    return wrap(words, pen, width - 2 * edge).map((line, i) => ({ line, font, shade, gap: i ? 0 : gap }));
  });
  const height = picture.height + (lines.length ? 2 * edge + lines.reduce((sum, { gap }) => sum + (1.4 + gap) * size, 0) : 0);
  canvas.width = Math.ceil(width * scale);
  canvas.height = Math.ceil(height * scale);
  pen.scale(scale, scale);
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width + 1 / scale, height + 1 / scale);
  pen.drawImage(picture, (width - picture.width) / 2, 0);
  let y = picture.height + edge;
  for (const { line, font, shade, gap } of lines) {
    pen.font = `${font} ${size}px system-ui, sans-serif`;
    y += gap * size;
    write(pen, line, edge, y + size, shade, page.colour);
    y += 1.4 * size;
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** What was said, in order: the question in bold, what TAP sees in green, the answer; at last, what TAP sees of marks. */
function linesOf(log, model) {
  const seenIn = (part, gap) => [...part.querySelectorAll(".look")].map((look, i) => ({
    words: `TAP sees ${look.querySelector(".name").textContent}: ${look.querySelector("q")?.textContent ?? look.querySelector(".concepts").textContent}`,
    font: "italic", shade: "#0b6b5d", gap: i ? 0.1 : gap,
  }));
  const turns = [...log.querySelectorAll(".turn")].flatMap((turn, i) => [
    { words: turn.querySelector(".asked").textContent, font: "600", shade: "#17181c", gap: i ? 0.8 : 0 },
    ...seenIn(turn, 0.1),
    { words: `${model}: ${turn.querySelector(".answered p").textContent}`, font: "400", shade: "#17181c", gap: 0.1 },
  ]);
  return [...turns, ...[...log.querySelectorAll(".told")].flatMap((told) => seenIn(told, turns.length ? 0.8 : 0))];
}

/** Text in lines that fit a width. Words that do not fit alone are cut, and so is writing without spaces. */
function wrap(text, pen, width) {
  const lines = [];
  let line = "";
  for (const word of text.match(/\s+|[^\s]+/g) || []) {
    if (pen.measureText(line + word).width <= width) { line += word; continue; }
    if (line.trim()) lines.push(line.trimEnd());
    line = "";
    for (const letter of word.trimStart()) {
      if (pen.measureText(line + letter).width > width) { lines.push(line); line = ""; }
      line += letter;
    }
  }
  return [...lines, line.trimEnd()].filter(Boolean);
}

/** A line whose names of regions have a bar of their colour beneath. */
function write(pen, line, x, y, shade, colour) {
  pen.fillStyle = shade;
  pen.fillText(line, x, y);
  for (const match of line.matchAll(/\bregion ?(\d+)\b/gi)) {
    const left = x + pen.measureText(line.slice(0, match.index)).width;
    pen.fillStyle = colour(Number(match[1]) - 1);
    pen.fillRect(left, y + 4, pen.measureText(match[0]).width, 4);
  }
}
