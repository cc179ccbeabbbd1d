// The page: wires picture, marks, conversation and server together, loads pictures, and comes back after a reload.

import { asking } from "./asking.js";
import { Board } from "./board.js";
import { wordsOf } from "./marking.js";  // the file lies in tap_tokenizer/browser
import { markOf, Marks, sentOf } from "./marks.js";
import { readRegion } from "./masks.js";
import { recall, retain } from "./memory.js";
import { pointing } from "./pointing.js";
import { savePicture, saveRecord } from "./saving.js";
import { call, isCopy, leave } from "./server.js";
import { made, Talk } from "./talk.js";
import { tools } from "./tools.js";

const settings = JSON.parse(document.getElementById("settings").textContent);
const find = (id) => document.getElementById(id);
const colour = (i) => settings.colours[i % settings.colours.length];
const KEPT = "kept";  // what this tab remembers of itself, beside its session

const state = {
  known: [],         // the conversation's regions, {region, word}
  found: null,       // what TAP found by itself; null if it was not asked to
  tool: "point",
  mode: "new",       // what the next click makes: "new", "add" to the last mark, or take "away" from it
  encoded: false,    // whether TAP has looked at the picture
  busy: false, hasPicture: false, isExample: false,
  loads: 0,          // which picture this is; what comes late for another is dropped
};
const page = { settings, find, colour, state, say, complain, working, remember, noteRegions, regions };  // and what its parts add
page.isTouched = matchMedia("(pointer: coarse)").matches;
page.talk = new Talk(find("talk"), { colour, model: settings.model, most: settings.regions, light, edit: () => page.edit() });
page.marks = new Marks(() => { showMarks(); remember(); });
page.board = new Board(find("board"), {
  colour,
  say,
  glance: (pointed) => page.glance(pointed),
  keep: (part, mode) => page.keep(part, mode),
  take: (region) => page.take(region),
  removeLast: () => page.removeLast(),
  nextColour: () => colour(state.known.length + (page.target() ?? page.marks.list.length)),
  mode: () => state.mode,
  tool: () => state.tool,
  candidates: () => (state.tool === "everything" ? page.offered() : []),
  regions,
});
Object.assign(page, pointing(page), tools(page), asking(page));
const { board, marks, talk } = page;

/** All regions in order: the conversation's, then those that were marked. */
function regions() {
  return [...state.known, ...page.marks.list.map((mark) => ({ region: mark.seen, mark, word: mark.seen?.concept?.[0] }))];
}

// --- what is said and shown ----------------------------------------------------------------------------------------------

let fading;
function say(words, wrong = false) {
  const status = find("status");
  status.textContent = words;
  status.classList.toggle("wrong", wrong);
  status.classList.remove("gone");
  status.setAttribute("role", wrong ? "alert" : "status");
  clearTimeout(fading);
  if (!wrong) fading = setTimeout(() => status.classList.add("gone"), 6000);
}

function complain(error) { say(error.message, true); }

let works = 0;
/** What a piece of work comes to. As long as it takes, the page shows that something is being done, and no message fades. */
async function working(work) {
  works++;
  document.body.classList.add("working");
  try { return await work; } finally { if (!--works) document.body.classList.remove("working"); }
}

function light(number) {
  board.lit = number !== null && regions()[number] ? number : null;
  board.draw();
}

function showMarks() {
  const list = find("marks");
  list.replaceChildren(...marks.list.map((mark, i) => {
    const item = made("li"), number = state.known.length + i, name = `region${number + 1}`, away = made("button", "", "×");
    item.style.setProperty("--shade", colour(number));
    away.type = "button";
    away.setAttribute("aria-label", `Remove ${name}`);
    away.onclick = () => { marks.remove(i); say(`${name} removed.`); find("board").focus(); };
    item.onpointerenter = () => light(number);
    item.onpointerleave = () => light(null);
    const words = made("span", "", mark.seen?.concept ? `${name}: ${mark.seen.concept[0]}` : name);
    words.append(made("span", "numbers", (mark.seen?.concept ? ", " : ": ") + wordsOf(mark)));
    item.append(words, away);
    return item;
  }));
  if (!marks.list.length) list.append(made("li", "none", state.known.length ? "No new region is marked" : "No region is marked yet"));
  list.scrollLeft = list.scrollWidth;
  showCut();
  if (!marks.list.length) state.mode = "new";
  page.showTools();
  page.suggest();
  page.tell();
  board.draw();
}

/** Fade the ends of the list beyond which more marks lie. */
function showCut() {
  const list = find("marks"), { scrollLeft, scrollWidth, clientWidth } = list;
  list.style.setProperty("--before", scrollLeft > 2 ? "36px" : "0px");
  list.style.setProperty("--after", scrollLeft + clientWidth < scrollWidth - 2 ? "36px" : "0px");
}
find("marks").onscroll = showCut;
find("marks").onwheel = ({ deltaY }) => { find("marks").scrollLeft += deltaY; };  // most mice have no other direction

// --- pictures ------------------------------------------------------------------------------------------------------------

/** Show what the server keeps: a new picture, or the talk so far. */
async function show(kept) {
  const image = new Image(), load = ++state.loads;
  image.src = kept.picture;
  await image.decode();
  if (load !== state.loads) return false;
  Object.assign(state, { hasPicture: true, encoded: kept.encoded, found: null, mode: "new", tool: "point" });
  state.known = [];
  noteRegions(kept.regions, kept.looks);
  board.show(image, kept);
  find("invitation").hidden = true;
  for (const bar of document.querySelectorAll(".bar")) bar.hidden = false;
  for (const id of ["again", "save"]) find(id).disabled = false;
  find("note").hidden = !settings.limitation || state.isExample;
  talk.show(kept);
  if (!kept.messages.length) find("talk").append(hint());
  marks.clear();
  page.setBusy(false);  // what was still being answered belonged to the picture before
  return true;
}

function noteRegions(regions, looks) {
  state.known = regions.map((region, i) => ({ region: readRegion(region), word: looks[i]?.concepts[0]?.[0] }));
}

function hint() {
  const list = made("ol", "hint");
  const first = state.hasPicture ? [] : [`Choose a picture${settings.examples.length ? ", or one of the examples" : ""}.`];
  const steps = page.isTouched ? ["Tap something: the outline is what TAP sees.", "Tap again to add to it."] :
    ["Point at something: the outline that follows is what TAP sees.", "Click to keep it, and again to add to it."];
  for (const words of [...first, ...steps, "Ask, or take one of the questions that appear below."]) list.append(made("li", "", words));
  return list;
}

/** Let TAP encode the picture, after which masks follow the pointer, and marks that were made before have theirs. */
async function encode() {
  const load = state.loads;
  for (let tries = 2; !state.encoded; tries--) {  // once more, because what waits may be stopped together with an answer
    if (!tries) throw new Error("TAP was stopped before it had looked at the picture: choose New chat, and it looks again.");
    const { encoded = false } = await working(call("encode"));
    if (load !== state.loads) return false;
    state.encoded ||= encoded;
  }
  page.glance();
  page.see();
  return true;
}

async function begin(picture) {
  say("Loading the picture …");
  try {
    state.isExample = "example" in picture;
    if (!(await show(await working(call("load", picture))))) return false;
    remember();
    const { width, height } = board.picture;
    say(`Picture of ${width} × ${height} pixels: TAP is looking at it …`);
    if (await encode()) say(`Picture of ${width} × ${height} pixels: ${page.isTouched ? "tap" : "point at something, click"} to mark a region.`);
    return true;
  } catch (error) { complain(error); return false; }
}

function read(file) {
  if (!file) return;
  if (file.size > settings.fileBytes)
    return say(`The file has ${(file.size / 1e6).toFixed(1)} MB, expected at most ${settings.fileBytes / 1e6} MB.`, true);
  const reader = new FileReader();
  reader.onload = () => begin({ upload: reader.result });
  reader.onerror = () => say("The file cannot be read: choose it again.", true);
  reader.readAsDataURL(file);
}

for (const input of document.querySelectorAll("input[type=file]")) input.onchange = () => { read(input.files[0]); input.value = ""; };
const stage = document.querySelector(".stage");
const holdsFile = ({ dataTransfer }) => dataTransfer.types.includes("Files");
const isText = ({ target }) => target.matches?.("textarea, input[type=text]");
document.addEventListener("dragover", (event) => {
  if (!holdsFile(event) && isText(event)) return;  // the browser puts text in
  event.preventDefault();
  if (holdsFile(event)) stage.classList.add("over");
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) stage.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  if (!holdsFile(event) && isText(event)) return;
  event.preventDefault();
  stage.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) read(file); else say("Only the file of a picture can be dropped here: save the picture first, or paste it.", true);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData ? event.clipboardData.files : [])].find((one) => one.type.startsWith("image/"));
  if (file) { event.preventDefault(); read(file); }
});

async function example(number) {
  const { question, points } = settings.examples[number];
  if (!(await begin({ example: number }))) return;
  marks.clear(points.map((point) => markOf({ points: [point], point_labels: [1] })));
  page.see();
  page.ask(question);
}

find("examples").append(...settings.examples.map(({ file, shows, question, points }, number) => {
  const item = made("li"), button = made("button"), frame = made("div", "cut"), whole = made("div"), picture = made("img");
  picture.src = `examples/${file}`;
  picture.alt = `A drawing of ${shows}.`;
  picture.onload = () => {  // show the part that is asked about, with a dot on each object
    const { naturalWidth: width, naturalHeight: height } = picture, heights = points.map(([, y]) => y / height);
    whole.style.setProperty("--ratio", height / width);
    whole.style.setProperty("--middle", (Math.min(...heights) + Math.max(...heights)) / 2);
    whole.append(...points.map(([x, y], i) => {
      const dot = made("i");
      dot.style.cssText = `left: ${100 * x / width}%; top: ${100 * y / height}%; --shade: ${colour(i)}`;
      return dot;
    }));
  };
  whole.append(picture);
  frame.append(whole);
  button.append(frame, made("span", "", question.replaceAll("<region>", "this").replace("this or this", "this or that").replace("Are this and this", "Are these")));
  button.onclick = () => example(number);
  item.append(button);
  return item;
}));

for (const part of document.querySelectorAll(".invitation h2, .examples")) part.hidden = !settings.examples.length;

find("again").onclick = async () => {
  try { if (await show(await call("again"))) { remember(); say("A new chat about the same picture."); encode().catch(complain); } } catch (error) { complain(error); }
};
find("save-png").onclick = () => {
  find("downloads").hidePopover();
  working(savePicture(page)).then((scale) => { if (scale < 1) say(`Saved at 1/${1 / scale} of its size: this browser draws no larger picture.`); }, complain);
};
find("save-json").onclick = () => { find("downloads").hidePopover(); working(saveRecord(page)).catch(complain); };

// --- what outlives a reload ----------------------------------------------------------------------------------------------

function remember() {
  const { width = 0, height = 0 } = page.board.picture || {};
  const kept = { width, height, known: state.known.length, isExample: state.isExample, question: find("question").value, marks: page.marks.list.map(sentOf) };
  retain(KEPT, JSON.stringify(kept));
}

async function comeBack() {
  if (isCopy) { remember(); return say("This tab is a copy of another: it begins a chat of its own."); }
  const before = JSON.parse(recall(KEPT) || "null");
  if (!before) return;
  const kept = before.width ? await call("state") : {};
  if (state.loads) return;
  if (!kept.picture) {
    find("question").value = before.question;
    if (before.width) say("The page's server no longer has your picture and your conversation: choose the picture again.", true);
    return;
  }
  state.isExample = before.isExample;
  if (!(await show(kept))) return;
  if (before.width === kept.width && before.known === kept.regions.length) {
    marks.clear(before.marks.map(markOf));
    find("question").value = before.question;
  }
  await encode();
  // The farewell of the page before may arrive after this one's first request: say once more that it is here.
  setTimeout(() => call("glance", { regions: [] }).catch(() => {}), 2000);
}

window.addEventListener("pagehide", leave);
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });  // the server may have forgotten it
find("model").textContent = settings.model;
document.body.classList.toggle("touched", page.isTouched);
if (page.isTouched) document.querySelector(".drop b").textContent = "Choose or take a picture";
for (const place of document.querySelectorAll(".limitation")) place.textContent = settings.limitation || "";
showMarks();
find("talk").append(hint());
comeBack().catch(complain).finally(() => document.body.classList.add("ready"));
