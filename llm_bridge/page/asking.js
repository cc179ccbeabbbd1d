// Asking: suggested questions, the question, and its answer as it comes.

import { markOf, sentOf } from "./marks.js";
import { call, steps } from "./server.js";
import { made, suggestions } from "./talk.js";

/** The parts of the page that ask. */
export function asking(page) {
  const { find, marks, settings, state, talk } = page;

  function suggest() {
    const said = new Set(talk.questions), room = find("suggestions");
    const fitting = state.busy ? [] : suggestions(state.known.length, marks.list.length).filter((question) => !said.has(question));
    const buttons = fitting.map((question) => { const button = made("button", "", question); button.onclick = () => ask(question); return button; });
    if (marks.list.length > 2 && !state.busy) {
      const button = made("button", "", `What is each of the ${marks.list.length} regions?`);
      button.onclick = askEach;
      buttons.unshift(button);
    }
    room.replaceChildren(...buttons);
    find("question").placeholder = marks.list.length ? `Ask about region${state.known.length + marks.list.length}` :
      state.known.length ? "Ask more, or mark another region" : `${page.isTouched ? "Tap" : "Point at"} something, then ask`;
    room.scrollLeft = 0;
  }

  function setBusy(busy) {
    state.busy = busy;
    find("ask").hidden = busy;
    find("stop").hidden = !busy;
    suggest();
    page.tell();
  }

  /** A question with the names that its new regions will have. */
  function withNames(question) {
    let number = state.known.length;
    return question.replace(/<region>/g, () => `region${++number}`);
  }

  /** Ask about marks, all by default. True once there is an answer; a question without one can be asked again. */
  async function ask(question, asked = marks.list) {
    if (state.busy) { page.say("An answer is being written: wait for its end, or stop it."); return false; }
    const load = state.loads, turn = talk.begin(withNames(question)), field = find("question");
    let answered = false, looks = [];
    field.value = "";
    setBusy(true);
    const giveBack = (words, wrong) => { field.value ||= question; page.say(words, wrong); };  // unless another was begun
    try {
      for await (const step of steps("ask", { question, regions: asked.map(sentOf) })) {
        if (load !== state.loads) return false;
        if (step.asked) turn.asked(step.asked);
        if (step.looks) { looks = step.looks; turn.looks(looks.slice(state.known.length)); }
        if (step.answer) turn.answer(step.answer);
        if (step.error) { turn.remove(); giveBack(step.error, true); }
        if (step.stopped) { turn.end(false); giveBack(step.stopped); }
        if (step.done) {
          answered = true;
          state.encoded = true;
          turn.end(true);
          if (step.regions) {
            page.noteRegions(step.regions, looks);
            marks.clear(marks.list.filter((mark) => !asked.some((one) => one.key === mark.key)));
          }
          page.say("Ask more, or mark other regions.");
        }
      }
    } catch (error) {
      turn.remove();
      giveBack(error.message, true);
      call("stop").catch(() => {});  // a lost connection looks to the server like a closed tab: this one is still there
    }
    if (load === state.loads) setBusy(false);
    page.see();
    page.remember();
    return answered;
  }

  /** Take the last question back, with its answer: it can be written differently, and its regions are marks again. */
  async function edit() {
    if (state.busy) return;
    const load = state.loads;
    try {
      const { question, marks: asked, ...kept } = await call("take_back");
      if (load !== state.loads) return;
      const seen = state.known.slice(kept.regions.length).map(({ region, word }) => ({ ...region, concept: word && [word] }));
      page.noteRegions(kept.regions, kept.looks);
      talk.show(kept);
      marks.clear([...asked.map((mark, i) => markOf({ ...mark, seen: seen[i] })), ...marks.list]);
      field.value = question;
      field.focus();
      page.setMode("new");
      page.say("Change the question or its regions, and ask again.");
      page.remember();
    } catch (error) { page.complain(error); }
  }

  /** Ask what each of the marks is, one after the other. */
  async function askEach() {
    for (const { key } of [...marks.list]) {
      const mark = marks.list.find((one) => one.key === key);
      if (!mark || !(await ask(`What is region${state.known.length + 1}?`, [mark]))) return;
    }
  }

  const field = find("question");
  field.maxLength = settings.characters;
  field.oninput = () => page.remember();
  field.onkeydown = (event) => {
    if (event.key !== "Enter" || event.isComposing || event.shiftKey) return;  // composing: it accepts a word of an input method
    event.preventDefault();
    if (!event.repeat) find("composer").requestSubmit();
  };
  find("composer").onsubmit = (event) => { event.preventDefault(); ask(field.value); };
  find("stop").onclick = () => call("stop").catch(page.complain);

  return { ask, edit, setBusy, suggest };
}
