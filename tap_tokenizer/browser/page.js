// The page: wires picture, marks and TAP together, opens pictures, and says what is seen.

import { Board } from "./board.js";
import { wordsOf } from "./marking.js";
import { boxOfMask, maskOf, runsOf } from "./masks.js";
import { Tap } from "./tap.js";

const isTouched = matchMedia("(pointer: coarse)").matches;
const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

const state = {
  regions: [],       // what was kept: {mark: {box, points, labels}, seen}
  past: [],          // before each change: the regions, and which was the current one
  current: -1,       // which of them the next click changes, and is lit
  mode: "new",       // what the next click makes: "new", "add" to the current one, or take "away" from it
  preview: null,     // what is pointed at: {seen, at}
  picture: null,     // {bitmap, width, height}; what comes late for another is dropped
  opening: 0,        // how many pictures are being opened
  encoded: false,    // whether TAP has looked at the picture
  settings: null,    // tap.json
};
const shade = (i) => state.settings.colours[i % state.settings.colours.length];
const board = new Board(find("board"), {
  glance, keep, say, shade,
  removeCurrent: () => remove(state.current),
  mode: () => state.mode,
  regions: () => state.regions,
  current: () => state.current,
  preview: () => state.preview,
});
const isReady = () => state.encoded && !state.opening;
let tap, started;

// --- what is said ------------------------------------------------------------------------------------------------------

function say(words, wrong = false) {
  find("status").textContent = words;
  find("status").classList.toggle("wrong", wrong);
}

const complain = (error) => say(error.message, true);

function made(tag, name, words = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = words;
  return element;
}

/** Concepts with their scores, as a list, and the score of the mask; without concepts, the latter alone. */
function conceptList({ concepts, score }) {
  const list = made("ol", "concepts");
  for (const [name, share] of concepts) {
    const item = made("li", ""), bar = made("span", "bar");
    bar.style.width = `${100 * share}%`;
    item.append(bar, made("span", "name", name), made("span", "share", percent(share)));
    list.append(item);
  }
  list.append(made("li", "quality", `mask quality ${percent(Math.min(1, Math.max(0, score)))}`));
  return list;
}

function showPointed() {
  const { preview } = state;
  find("pointed").replaceChildren(preview ? conceptList(preview.seen) : made("p", "hint", state.settings?.model.concepts === null
    ? "This model has no concepts: it shows masks, but no names."
    : "Point at something to see what it is."));
  board.draw();
}

function showRegions() {
  find("regions").replaceChildren(...state.regions.map(({ mark, seen }, i) => {
    const item = made("li", i === state.current ? "current" : ""), choose = made("button", "choose"), away = made("button", "remove", "×");
    item.style.setProperty("--shade", `rgb(${shade(i)})`);
    choose.setAttribute("aria-pressed", String(i === state.current));
    const best = seen?.concepts[0];
    choose.append(made("b", "", `${i + 1} ${best?.[0] ?? (seen ? "region" : "…")}`));
    choose.append(made("span", "", wordsOf(mark) + (best ? `, ${percent(best[1])}` : "")));
    choose.onclick = () => { state.current = i; showRegions(); };
    away.setAttribute("aria-label", `Remove region ${i + 1}`);
    away.onclick = () => { remove(i); find("board").focus(); };
    item.append(choose, away);
    if (seen && i === state.current) item.append(conceptList(seen));
    return item;
  }));
  find("none").hidden = state.regions.length > 0;
  find("undo").disabled = !state.past.length;
  find("save").disabled = !state.regions.some(({ seen }) => seen);
  if (!state.regions.length) state.mode = "new";
  for (const button of document.querySelectorAll("[data-mode]")) {
    button.setAttribute("aria-checked", String(button.dataset.mode === state.mode));
    button.tabIndex = button.dataset.mode === state.mode ? 0 : -1;
    button.disabled = button.dataset.mode !== "new" && !state.regions.length;
  }
  board.draw();
}

// --- pointing ----------------------------------------------------------------------------------------------------------

/** The mark that a part would make, and which region it would change: {mark, at}; null if there is nothing to take away from. */
function markFrom(part, mode) {
  if (mode === "new" || !state.regions.length) return mode === "away" ? null : { mark: part, at: null };
  const { mark } = state.regions[state.current];
  return { mark: { ...mark, points: [...mark.points, ...part.points], labels: [...mark.labels, ...part.labels] }, at: state.current };
}

let wanted = null, looking = false;
/** Show TAP's mask of a part that is pointed at; null shows none. Only the latest is asked for, one at a time. */
async function glance(part, mode) {
  wanted = part && isReady() ? markFrom(part, mode) : null;
  if (!wanted) { state.preview = null; return showPointed(); }
  if (looking) return;
  looking = true;
  try {
    for (let asked = null; wanted && wanted !== asked; ) {
      asked = wanted;
      const { picture } = state, seen = await tap.see(asked.mark);
      if (wanted && picture === state.picture) { state.preview = { ...asked, seen }; showPointed(); }
    }
  } catch (error) { complain(error); } finally { looking = false; }
}

/** Show other regions than before; what was pointed at may no longer belong to them. */
function become(regions, current) {
  wanted = null;
  Object.assign(state, { regions, current, preview: null });
  showPointed();
  showRegions();
}

function change(regions, current) {
  state.past.push([state.regions, state.current]);
  become(regions, current);
}

/** Keep what a part makes: a new region, or the current one with more to it. */
async function keep(part, mode) {
  if (!isReady()) return say("TAP is still looking at the picture: wait a moment.");
  const marked = markFrom(part, mode);
  if (!marked) return say("Mark the region first, then what does not belong to it.", true);
  const { mark, at } = marked, { picture, preview } = state;
  const region = { mark, seen: JSON.stringify(preview?.mark) === JSON.stringify(mark) ? preview.seen : null };
  change(at === null ? [...state.regions, region] : state.regions.map((old, i) => (i === at ? region : old)), at ?? state.regions.length);
  try { region.seen ??= await tap.see(mark); } catch (error) { return complain(error); }
  if (picture !== state.picture || !state.regions.includes(region)) return;
  showRegions();
  const [best] = region.seen.concepts, number = state.regions.indexOf(region) + 1;
  say(`Region ${number}${best ? `: ${best[0]}, ${percent(best[1])}` : ""}. ${isTouched ? "Choose Take away" : "Alt-click"} to take away from it.`);
}

function remove(index) {
  if (!state.regions[index]) return;
  const current = index < state.current ? state.current - 1 : Math.min(state.current, state.regions.length - 2);
  change(state.regions.filter((_, i) => i !== index), current);
  say(`Region ${index + 1} was removed.`);
}

function undo() {
  if (!state.past.length) return;
  become(...state.past.pop());
  say("Undone.");
}

function setMode(mode) {
  if (mode === "new" || state.regions.length) state.mode = mode;
  showRegions();
}

// --- pictures ------------------------------------------------------------------------------------------------------------

let lastOpened = Promise.resolve(), chosen = 0;
/** Open a picture after those that were chosen before; of several that wait, only the one that was chosen last. */
function open(file) {
  if (!file) return;
  const number = ++chosen;
  state.opening++;
  lastOpened = lastOpened.then(async () => {
    try {
      await started;
      if (number === chosen) await openNow(file);
    } catch (error) { complain(error); } finally { state.opening--; }
  });
  return lastOpened;
}

async function openNow(file) {
  say("Opening the picture …");
  state.picture = await tap.open(file);
  Object.assign(state, { encoded: false, past: [], mode: "new" });
  board.show(state.picture, state.settings.image_size);
  find("invitation").hidden = true;
  find("modes").hidden = false;
  become([], -1);
  say(`Picture of ${state.picture.width} × ${state.picture.height} pixels: TAP is looking at it …`);
  await tap.encode();
  state.encoded = true;
  say("Point at something: TAP's mask follows. A click keeps it, dragging draws a box.");
}

async function openExample(path) {
  try {
    const response = await fetch(path);
    if (!response.ok) throw new Error(`${path} is missing from this page's folder: copy the folder whole.`);
    await open(await response.blob());
  } catch (error) { complain(error instanceof TypeError ? new Error(`${path} cannot be loaded: is the page's server still running?`) : error); }
}

for (const input of document.querySelectorAll("input[type=file]")) input.onchange = () => { open(input.files[0]); input.value = ""; };
const stage = document.querySelector(".stage");
document.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) stage.classList.remove("over"); });
document.addEventListener("drop", (event) => { event.preventDefault(); stage.classList.remove("over"); open(event.dataTransfer.files[0]); });
document.addEventListener("paste", (event) => open([...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"))));

/** What was kept, as a file: marks, concepts and masks as COCO writes them, in pixels of the picture. */
function save() {
  const { width, height } = state.picture, { name, fingerprint, image_size } = state.settings;
  const regions = state.regions.filter(({ seen }) => seen).map(({ mark, seen }) => {
    const mask = maskOf(seen, state.picture, image_size, width, height);
    return {
      ...(mark.box && { box: mark.box }), ...(mark.points.length && { points: mark.points, point_labels: mark.labels }),
      segmentation: runsOf(mask, width, height), mask_box: boxOfMask(mask, width), score: seen.score, concepts: seen.concepts,
    };
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ model: name, fingerprint, width, height, regions })], { type: "application/json" }));
  link.download = "regions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  say(`regions.json has ${regions.length} region${regions.length === 1 ? "" : "s"} with masks.`);
}

find("save").onclick = save;
find("undo").onclick = undo;
find("modes").addEventListener("click", (event) => { const { mode } = event.target.closest("button")?.dataset ?? {}; if (mode) setMode(mode); });
find("modes").addEventListener("keydown", (event) => {  // as in every group of radio buttons
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const buttons = [...find("modes").querySelectorAll("[data-mode]:enabled")];
  const next = buttons[(buttons.indexOf(document.activeElement) + by + buttons.length) % buttons.length];
  next.click();
  next.focus();
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { event.preventDefault(); return undo(); }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const mode = { n: "new", a: "add", x: "away" }[event.key.toLowerCase()];
  if (event.key === "?") find("keys").togglePopover();
  if (mode && state.picture) setMode(mode);
});

// --- the start -----------------------------------------------------------------------------------------------------------

async function start() {
  if (typeof WebAssembly !== "object") throw new Error("This browser runs no WebAssembly, which TAP needs here: allow it, or use a recent Chrome, Edge, Firefox or Safari.");
  if (typeof Worker !== "function" || typeof OffscreenCanvas !== "function")
    throw new Error("This browser is too old for the page: use a recent Chrome, Edge, Firefox or Safari.");
  const response = await fetch("tap.json").catch(() => { throw new Error("tap.json cannot be loaded: is the page's server still running?"); });
  if (!response.ok) throw new Error("tap.json is missing: write the page's folder with tap-tokenizer export --browser.");
  const settings = state.settings = await response.json();
  find("model").textContent = `${settings.name}, ${settings.precision}`;
  for (const place of document.querySelectorAll(".limitation")) { place.textContent = settings.limitation ?? ""; place.hidden = !settings.limitation; }
  find("examples").append(...settings.examples.map(({ path, name }) => {
    const item = made("li", ""), button = made("button", ""), picture = made("img", "");
    [picture.src, picture.alt] = [path, `Example: ${name}`];
    button.append(picture);
    button.onclick = () => openExample(path);
    item.append(button);
    return item;
  }));
  find("or").hidden = !settings.examples.length;
  showPointed();
  tap = new Tap((loaded, total) => say(`Loading TAP: ${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`));
  await tap.start(settings);
  if (!state.opening) say("TAP is ready: choose a picture.");
}

showRegions();
started = start();
started.then(() => document.body.classList.add("ready"), (error) => { document.body.classList.add("broken"); complain(error); });
