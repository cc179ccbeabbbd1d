// The conversation: questions, what TAP sees, and the language model's answers, told apart at a glance.

const NAME = /\bregion ?(\d+)\b/gi;
const LEAST = 0.05;  // the score of a concept that is worth showing, beside the best one

export class Talk {
  /** log: the element that shows it. page: colour(i), light(i or null), model, most, edit(). */
  constructor(log, page) {
    this.log = log;
    this.page = page;
    for (const kind of ["pointerover", "focusin"]) log.addEventListener(kind, (event) => this.#light(event.target));
    for (const kind of ["pointerout", "focusout"]) log.addEventListener(kind, () => this.page.light(null));
  }

  #light(target) {
    const name = target.closest(".name");
    if (name) this.page.light(Number(name.dataset.region));
  }

  /** Show a conversation as the server keeps it. */
  show({ messages, looks }) {
    this.clear();
    const unplaced = [...looks];
    const asked = messages.filter((message) => message.role === "user");
    asked.forEach((message, i) => {
      const turn = this.begin(message.content);
      const named = new Set([...message.content.matchAll(NAME)].map((match) => `region${Number(match[1])}`));
      const isLast = i === asked.length - 1;
      turn.looks(unplaced.filter((look) => isLast || named.has(look.name)));
      for (const look of [...unplaced]) if (named.has(look.name)) unplaced.splice(unplaced.indexOf(look), 1);
      turn.answer(messages[2 * i + 1]?.content ?? "");
      turn.end(true);
    });
  }

  clear() { this.log.replaceChildren(); }

  get questions() { return [...this.log.querySelectorAll(".asked")].map((asked) => asked.textContent); }

  /** Show what TAP says of regions that are not asked about yet, as the server gives it; instead of what was shown before. */
  tell(looks) {
    this.log.querySelector(".told")?.remove();
    if (!looks.length) return;
    this.log.querySelector(".hint")?.remove();
    const told = seenBy("TAP sees");
    told.classList.add("told");
    told.append(...looks.map((look) => this.#look(look)));
    this.log.append(told);
    this.#down();
  }

  /** A new turn; {asked, looks, answer, end, remove} show its parts as they come. */
  begin(question) {
    this.log.querySelector(".hint")?.remove();
    this.tell([]);
    const turn = made("article", "turn"), asked = made("div", "asked"), seen = seenBy("TAP sees, without the question");
    const answered = made("div", "answered writing"), words = made("p");
    seen.hidden = true;
    answered.append(made("span", "who", `${this.page.model} answers`), words);
    turn.append(asked, seen, answered);
    const write = (element, text) => element.replaceChildren(...this.#withNames(text));
    write(asked, question);
    this.log.setAttribute("aria-busy", "true");  // it is read when it is whole
    this.log.append(turn);
    this.#down();
    return {
      asked: (text) => write(asked, text),
      looks: (looks) => {
        const shown = seen.querySelectorAll(".look").length;
        seen.append(...looks.slice(shown).map((look) => this.#look(look)));
        seen.hidden = !seen.querySelector(".look");
        this.#down();
      },
      answer: (text) => { write(words, text); this.#down(); },
      /** Nothing more comes; isKept: the conversation goes on from here, and this question can be edited. */
      end: (isKept) => {
        answered.classList.remove("writing");
        if (isKept && !words.textContent.trim()) words.append(made("i", "", "The model ended its answer without a word. Ask about a region."));
        this.log.removeAttribute("aria-busy");
        if (isKept) this.#offerEdit(turn);
      },
      remove: () => { turn.remove(); this.log.removeAttribute("aria-busy"); },
    };
  }

  /** Offer to edit the last question, which is that of a turn. */
  #offerEdit(turn) {
    const edit = this.log.querySelector(".edit") || made("button", "edit");
    edit.type = "button";
    edit.title = "Edit this question: takes back the question and its answer";
    edit.setAttribute("aria-label", "Edit the last question");
    edit.innerHTML = '<svg><use href="#i-edit"/></svg>';
    edit.onclick = () => this.page.edit();
    turn.prepend(edit);
  }

  #down() { this.log.scrollTop = this.log.scrollHeight; }

  #look({ name, caption, concepts, cutout }) {
    const look = made("div", "look"), picture = made("img"), head = made("div"), list = made("div", "concepts");
    picture.src = cutout;
    picture.alt = `mask of ${name}`;
    picture.width = picture.height = 52;
    head.append(...this.#withNames(name), " ");
    if (caption) head.append(made("q", "", caption));
    for (const [concept, score] of concepts.filter(([, score], i) => !i || score >= LEAST)) {
      const one = made("span");
      one.append(made("b", "", concept), ` ${Math.round(100 * score)} %`);
      list.append(one);
    }
    look.append(picture, head, list);
    return look;
  }

  /** Text in which the names of regions have their colour and light them up. */
  #withNames(text) {
    const parts = [];
    let from = 0;
    for (const match of text.matchAll(NAME)) {
      const number = Number(match[1]);
      if (number < 1 || number > this.page.most) continue;
      const name = made("button", "name", match[0]);
      name.type = "button";
      name.dataset.region = number - 1;
      name.style.setProperty("--shade", this.page.colour(number - 1));
      parts.push(text.slice(from, match.index), name);
      from = match.index + match[0].length;
    }
    return [...parts, text.slice(from)];
  }
}

/** A frame for what TAP says, under its heading. */
function seenBy(heading) {
  const seen = made("div", "seen");
  seen.append(made("span", "who", heading));
  return seen;
}

/** An element with a class and text. */
export function made(kind, name = "", text = "") {
  const element = document.createElement(kind);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}

/** Questions that fit what is marked: `known` regions of the conversation, and `marked` new ones. */
export function suggestions(known, marked) {
  const last = `region${known + marked}`, before = `region${known + marked - 1}`;
  const one = [`What is ${last}, and where is it?`, `What colour is ${last}?`, `Describe ${last}.`];
  const two = [`Which is larger, ${before} or ${last}?`, `Are ${before} and ${last} the same colour?`, `Are ${before} and ${last} the same kind of object?`];
  if (marked > 2) return [];
  if (marked === 2) return two;
  if (marked === 1) return known ? [...one, two[0], two[1]] : one;
  return known > 1 ? [`What colour is ${last}?`, `How big is ${last}?`, ...two] : known ? [`What colour is ${last}?`, `How big is ${last}?`, `Where is ${last}?`] : [];
}
