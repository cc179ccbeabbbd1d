// What pointing makes: TAP's mask as it moves, marks as it clicks.

import { wordsOf } from "./marking.js";  // the file lies in tap_tokenizer/browser
import { foundMark, markOf, refined, sentOf } from "./marks.js";
import { readRegion } from "./masks.js";
import { call } from "./server.js";

/** The parts of the page that show and keep what is pointed at. */
export function pointing(page) {
  const { board, marks, settings, state } = page;

  /** The number of the mark that the next click changes; null if it makes a new one. */
  function target(mode = state.mode) { return mode === "new" || !marks.list.length ? null : marks.list.length - 1; }

  /** What a part that is pointed at would make: a new mark, or the last one with more to it. */
  function markFrom({ part, mode }) {
    const at = target(mode);
    return at === null ? (mode === "away" ? null : markOf(part)) : refined(marks.list[at], part);
  }

  /** The key of the mark that the next click changes; undefined if it makes a new one. */
  function changedBy(mode) { return marks.list[target(mode)]?.key; }

  let wanted = null, asking = false, pointings = 0;
  /** Show TAP's mask of what is pointed at, by default of what was pointed at before; null shows none.
   *  Only the latest is asked for, one at a time. */
  function glance(pointed = wanted) {
    wanted = pointed;
    if (!pointed) { pointings++; board.preview = null; board.draw(); return; }
    if (!asking && state.encoded) lookOn();
  }

  async function lookOn() {
    asking = true;
    try {
      while (wanted) {
        const pointed = wanted, mark = markFrom(pointed), changes = changedBy(pointed.mode), pointing = pointings;
        wanted = null;
        if (!mark) continue;
        const { regions } = await call("glance", { regions: [sentOf(mark)] });
        if (pointing !== pointings) continue;  // it points elsewhere, or at nothing
        board.preview = { ...readRegion(regions[0]), part: pointed.part, changes };
        board.draw();
      }
    } catch (error) {
      if (error.status !== 409 && error.status !== 503) page.complain(error);  // there will be another glance
    } finally { asking = false; }
  }

  /** Ask TAP for the masks of marks that have none. */
  async function see() {
    if (!state.encoded) return;
    const load = state.loads, unseen = marks.list.filter((mark) => !mark.seen);
    if (!unseen.length) return;
    try {
      const { regions } = await call("glance", { regions: unseen.map(sentOf) });
      if (load === state.loads) unseen.forEach((mark, i) => marks.note(mark, { seen: readRegion(regions[i]) }));
    } catch (error) {
      if (error.status === 503) setTimeout(see, 500);
      else if (error.status !== 409) page.complain(error);
    }
  }

  let isTelling = false;
  /** Show what TAP says about the marks, and ask for the words that are missing, for a few marks at a time. */
  async function tell() {
    const told = state.busy ? [] : marks.list.map((mark, i) => mark.look && { ...mark.look, name: `region${state.known.length + i + 1}` });
    page.talk.tell(told.filter(Boolean));
    if (isTelling) return;
    isTelling = true;
    try {
      for (;;) {
        const load = state.loads, untold = marks.list.filter((mark) => mark.seen && !mark.look).slice(0, 4);
        if (state.busy || !untold.length) break;
        const { looks } = await call("look", { regions: untold.map(sentOf) });
        if (!looks || load !== state.loads) break;
        untold.forEach((mark, i) => marks.note(mark, { look: looks[i] }));
      }
    } catch (error) {
      if (error.status !== 503) page.complain(error);  // the words then come with the answer
    } finally { isTelling = false; }
  }

  function keep(part, mode) {
    const at = target(mode);
    if (mode === "away" && at === null) { board.forget(); return page.say("Mark the region first, then what does not belong to it.", true); }
    const mark = at === null ? null : refined(marks.list[at], part);
    const { preview } = board, isShown = preview?.part && preview.changes === changedBy(mode);
    const same = isShown && JSON.stringify(preview.part) === JSON.stringify(part) ? preview : undefined;
    if (mark) {
      marks.replace(at, { ...mark, seen: same });
      const name = `region${state.known.length + at + 1}`;
      page.say(mode === "away" ? `Taken away from ${name}.` : `Added to ${name}.`);
    } else {
      if (state.known.length + marks.list.length >= settings.regions)
        return page.say(`A conversation has at most ${settings.regions} regions: start a new chat.`, true);
      marks.add(markOf({ ...part, seen: same }));
      page.setMode("add");
      const name = `region${state.known.length + marks.list.length}`;
      const more = page.isTouched ? "Tap again to add to it, − takes away, New begins another." :
        "Click again to add to it, Alt-click to take away, N for another.";
      page.say(`${name}: ${same?.concept?.[0] ?? wordsOf(part)}.` + (marks.list.length > 1 || state.known.length ? "" : ` ${more}`));
    }
    glance(null);
    see();
  }

  /** Keep one of the regions that TAP found by itself. */
  function take(region) {
    if (state.known.length + marks.list.length >= settings.regions)
      return page.say(`A conversation has at most ${settings.regions} regions: start a new chat.`, true);
    board.hit = board.preview = null;
    marks.add(foundMark(region));
    page.setMode("new");
    page.say(`region${state.known.length + marks.list.length}: ${region.concept?.[0] ?? wordsOf(region.prompt)}.`);
  }

  function takeAll() {
    const room = settings.regions - state.known.length - marks.list.length, taken = page.offered().slice(0, room);
    marks.addAll(taken.map(foundMark));
    const { length } = page.offered();
    page.setTool("point");
    page.setMode("new");
    page.say(length ? leftOut(length) : `${taken.length} regions kept.`, length > 0);
  }

  /** What is said where there was no room for so many regions. */
  function leftOut(count) {
    return `A conversation has at most ${settings.regions} regions: ${count} ${count > 1 ? "were" : "was"} left out.`;
  }

  function removeLast() {
    if (!marks.list.length) return;
    marks.remove(marks.list.length - 1);
    page.say("The last region was removed.");
  }

  return { glance, keep, leftOut, removeLast, see, take, takeAll, target, tell };
}
