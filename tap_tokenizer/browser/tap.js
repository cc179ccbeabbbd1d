// TAP as the page knows it: a worker that is asked, and answers.

export class Tap {
  /** loading: called with the bytes that have arrived, and with how many there will be, until `start` has an answer. */
  constructor(loading) {
    this.waiting = new Map();
    this.asked = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data: { id, answer, wrong, loaded, total } }) => {
      if (id === undefined) { if (this.waiting.size) loading(loaded, total); return; }
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      if (wrong) reject(new Error(wrong));
      else resolve(answer);
    };
    this.worker.onerror = () => {
      for (const { reject } of this.waiting.values()) reject(new Error("worker.js, the part that runs TAP, does not start in this browser."));
      this.waiting.clear();
    };
  }

  #ask(work, given) {
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.asked, { resolve, reject });
      this.worker.postMessage({ id: this.asked, work, given });
    });
  }

  start(settings) { return this.#ask("start", settings); }
  open(file) { return this.#ask("open", file); }
  encode() { return this.#ask("encode"); }

  /** What is seen of a mark {box, points, labels}: {logits, side, score, concepts}. */
  see({ box, points, labels }) {
    const corners = box ? [box.slice(0, 2), box.slice(2)] : [];
    return this.#ask("see", { points: [...corners, ...points], labels: [...corners.map((_, i) => 2 + i), ...labels] });
  }
}
