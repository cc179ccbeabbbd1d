// The bars on the picture, the little forms, and the keys.

import { foundMark } from "./marks.js";
import { readRegion } from "./masks.js";
import { call } from "./server.js";

/** The parts of the page that choose how the next region is marked. */
export function tools(page) {
  const { board, find, marks, settings, state, talk } = page;

  function showTools() {
    for (const button of document.querySelectorAll("[data-tool], [data-mode]")) {
      const { tool, mode } = button.dataset, isOn = tool ? tool === state.tool : mode === state.mode;
      button.setAttribute("aria-checked", String(isOn));
      button.tabIndex = isOn ? 0 : -1;
      if (mode && mode !== "new") button.disabled = !marks.list.length;
    }
    find("undo").disabled = !marks.canUndo;
    find("redo").disabled = !marks.canRedo;
    document.body.classList.toggle("choosing", state.tool === "everything");
    const { length } = state.tool === "everything" ? offered() : [];
    find("keep-all").hidden = !length;
    find("keep-all").textContent = `Keep all ${length}`;
  }

  function setMode(mode) {
    if (mode === "new" || marks.list.length) state.mode = mode;
    showTools();
  }

  function setTool(tool) {
    state.tool = tool;
    board.leaveOff();
    showTools();
    if (tool === "everything") findEverything();
    else page.say({
      point: page.isTouched ? "Tap something to mark it." : "Point at something: TAP's mask follows. A click keeps it.",
      box: "Drag a box around something.",
      brush: page.isTouched ? "Paint over something; tap − first to erase." : "Paint over something; hold Alt to erase.",
    }[tool]);
  }

  /** Intersection over union of two boxes. */
  function agreement([a, b, c, d], [e, f, g, h]) {
    const both = Math.max(0, Math.min(c, g) - Math.max(a, e)) * Math.max(0, Math.min(d, h) - Math.max(b, f));
    return both / ((c - a) * (d - b) + (g - e) * (h - f) - both || 1);
  }

  /** The number of the region that something which was found is already; -1 if it is none. */
  function keptAs({ box }) { return page.regions().findIndex(({ region }) => region && agreement(box, region.box) > 0.8); }

  /** What TAP found by itself, without what is a region already. */
  function offered() { return (state.found || []).filter((region) => keptAs(region) < 0); }

  /** Ask TAP for regions, and say what it is looking for; null if that came to nothing, which is said. */
  async function search(path, data, words) {
    const load = state.loads;
    page.say(words);
    try {
      const { regions } = await page.working(call(path, data));
      if (load !== state.loads) return null;
      if (!regions) page.say("The search was stopped before it had found anything: start it again.", true);
      return regions ? regions.map(readRegion) : null;
    } catch (error) { page.complain(error); return null; }
  }

  async function findEverything() {
    const found = state.found || (await search("everything", {}, "TAP is looking for everything …"));
    if (!found) return;
    state.found = found;
    const { length } = offered();
    page.say(length ? `TAP offers ${length}: ${page.isTouched ? "tap" : "click"} the ones you want.` :
      "TAP finds nothing more by itself: choose Point, and mark it yourself.", !found.length);
    showTools();
    board.draw();
  }

  /** How sure the model is of what it found. */
  function sureness(found) {
    const shares = found.map(({ probability }) => Math.round(100 * probability));
    const least = Math.min(...shares), most = Math.max(...shares);
    return `The model is ${least < most ? `${least} to ${most}` : most} % sure.`;
  }

  async function findByName(words) {
    const found = await search("find", { words }, `Looking for ${words} …`);
    if (!found) return;
    if (!found.length) return page.say(`Nothing here is ${words}.`, true);
    const already = found.map(keptAs).filter((number) => number >= 0).sort((a, b) => a - b), fresh = found.filter((region) => keptAs(region) < 0);
    const room = settings.regions - state.known.length - marks.list.length, left = Math.max(0, fresh.length - room);
    marks.addAll(fresh.slice(0, room).map(foundMark));
    const names = already.map((number) => `region${number + 1}`).join(", ");
    page.say([`Found ${found.length}: ${words}.`, names && `Marked already: ${names}.`, sureness(found), left && page.leftOut(left)]
      .filter(Boolean).join(" "), left > 0);
  }

  for (const group of document.querySelectorAll("[role=radiogroup]")) {
    group.addEventListener("click", (event) => {
      const { tool, mode } = event.target.closest("button")?.dataset || {};
      if (tool) setTool(tool);
      if (mode) setMode(mode);
    });
    group.addEventListener("keydown", (event) => {  // as in every group of radio buttons
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const buttons = [...group.querySelectorAll("button:enabled")];
      const next = buttons[(buttons.indexOf(document.activeElement) + by + buttons.length) % buttons.length];
      next.click();
      next.focus();
    });
  }
  find("undo").onclick = () => { marks.undo(); page.say("Undone."); page.see(); };
  find("redo").onclick = () => { marks.redo(); page.say("Redone."); page.see(); };
  find("keep-all").onclick = () => page.takeAll();
  find("in").onclick = () => board.zoom(1.4);
  find("out").onclick = () => board.zoom(1 / 1.4);
  find("fit").onclick = () => board.fit();
  for (const part of [find("find"), document.querySelector(".by-name")]) part.hidden = !settings.findsByName;
  find("finding").querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    const words = find("phrase").value.trim();
    if (!words) return page.say("Write what to find, for example: the red umbrella.", true);
    find("finding").hidePopover();
    findByName(words);
  };
  find("typing").querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    const { width, height } = board.picture, numbers = find("typed").value.trim().split(/[\s,;]+/).map(Number);
    if (![2, 4].includes(numbers.length) || numbers.some((x) => !Number.isFinite(x)))
      return page.say("Write four numbers for a box, x1 y1 x2 y2, or two for a point, x y.", true);
    const fits = (x, y) => x >= 0 && y >= 0 && x <= width && y <= height;
    if (!fits(numbers[0], numbers[1]) || (numbers.length === 4 && !fits(numbers[2], numbers[3])))
      return page.say(`That lies outside the picture of ${width} × ${height} pixels.`, true);
    if (numbers.length === 4 && (numbers[2] <= numbers[0] || numbers[3] <= numbers[1]))
      return page.say("A box is x1 y1 x2 y2 with x1 < x2 and y1 < y2: corners, not width and height.", true);
    if (numbers.length === 4 && numbers.every((x) => x <= 1) && numbers.some((x) => x % 1))
      return page.say("Those look like fractions: give pixels of the picture instead.", true);
    find("typed").value = "";
    find("typing").hidePopover();
    page.keep(numbers.length === 4 ? { box: numbers } : { points: [numbers], point_labels: [1] }, "new");
  };

  const KEYS = {
    p: () => setTool("point"), b: () => setTool("box"), r: () => setTool("brush"), e: () => setTool("everything"),
    f: () => settings.findsByName && open("finding"), t: () => open("typing"),
    n: () => setMode("new"), a: () => setMode("add"), x: () => setMode("away"),
    "+": () => board.zoom(1.4, board.cross ? board.onScreen(board.cross) : undefined), "=": () => board.zoom(1.4),
    "-": () => board.zoom(1 / 1.4), 0: () => board.fit(), "?": () => open("keys"), "/": () => find("question").focus(),
  };
  function open(id) { find(id).showPopover(); find(id).querySelector("input")?.focus(); }
  document.addEventListener("keydown", (event) => {
    const writes = event.target.closest?.("input, textarea");
    if ((event.ctrlKey || event.metaKey) && !event.altKey && !writes && /^[zy]$/i.test(event.key)) {
      event.preventDefault();
      const button = event.key.toLowerCase() === "y" || event.shiftKey ? find("redo") : find("undo");
      if (!button.disabled) return button.click();
      return page.say(button.id === "redo" ? "There is nothing to redo." : state.known.length || talk.questions.length ?
        "No mark is left to undo: the pencil beside the last question takes that back." : "There is nothing to undo.");
    }
    if (writes || event.ctrlKey || event.metaKey || event.altKey || !state.hasPicture) return;
    const act = KEYS[event.key.toLowerCase()];
    if (act) { event.preventDefault(); act(); }
  });

  return { offered, setMode, setTool, showTools };
}
