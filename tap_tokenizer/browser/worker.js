// The worker: TAP itself. It loads the runtime and the graphs, reads pictures, and answers one prompt after another.

import { bestConcepts, readConcepts } from "./concepts.js";
import { frameOf, openPicture } from "./pictures.js";

const ENCODED = ["image_embeddings", "image_positional_embeddings"];
const DECODED = ["iou_scores", "pred_masks", "semantic_embeds", "expert"];
const tap = {};  // settings (tap.json), ort, encoder, decoder, concepts; of the latest picture: picture, and what was seen of it

const WORK = {
  /** Load everything that tap.json names. */
  async start(settings) {
    const { runtime, model } = settings, files = [runtime.wasm, model.encoder, model.decoder, model.concepts].filter(Boolean);
    const loaded = new Map(), total = files.reduce((sum, { bytes }) => sum + bytes, 0);
    const tell = (file, bytes) => {
      loaded.set(file, bytes);
      self.postMessage({ loaded: [...loaded.values()].reduce((sum, one) => sum + one, 0), total });
    };
    const [module, wasm, encoder, decoder, concepts] = await Promise.all([
      moduleOf(runtime.module), ...[runtime.wasm, model.encoder, model.decoder].map((file) => bytesOf(file, tell)),
      model.concepts && bytesOf(model.concepts, tell),
    ]);
    module.env.wasm.wasmBinary = wasm.buffer;
    // Threads share memory, which browsers allow to pages that are isolated from others.
    module.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    const session = (graph) => module.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    Object.assign(tap, { settings, ort: module, encoder: await session(encoder), decoder: await session(decoder) });
    tap.concepts = concepts && readConcepts(concepts.buffer);
  },

  /** Read a picture's file; the answer is what to show. */
  async open(file) {
    const { bitmap, ...picture } = await openPicture(file);
    Object.assign(tap, { picture, seen: null });
    return { bitmap, width: picture.width, height: picture.height };
  },

  /** Let the encoder look at the picture, once for all prompts that follow. */
  async encode() {
    const size = tap.settings.image_size, pixels = frameOf(tap.picture, tap.settings);
    const inputs = { pixel_values: new tap.ort.Tensor("float32", pixels, [1, 3, size, size]) };
    tap.seen = await tap.encoder.run(inputs, ENCODED);
    tap.picture.pixels = null;
  },

  /** Points in pixels of the picture, with SAM's labels → the answering expert's mask logits, its score, and concepts. */
  async see({ points, labels }) {
    const { Tensor } = tap.ort, { width, height } = tap.picture, scale = tap.settings.image_size / Math.max(width, height);
    const inputs = {
      ...tap.seen,
      input_points: new Tensor("float32", Float32Array.from(points.flat(), (value) => value * scale), [1, 1, labels.length, 2]),
      input_labels: new Tensor("int64", BigInt64Array.from(labels, BigInt), [1, 1, labels.length]),
    };
    const { iou_scores, pred_masks, semantic_embeds, expert } = await tap.decoder.run(inputs, DECODED);
    const answers = Number(expert.data[0]), row = (tensor) => rowOf(tensor, answers);
    return {
      logits: row(pred_masks), side: pred_masks.dims.at(-1), score: iou_scores.data[answers],
      concepts: tap.concepts ? bestConcepts(row(semantic_embeds), tap.concepts) : [],
    };
  },
};

/** What one expert says, of a tensor (1, 1, K, …). */
function rowOf({ data, dims }, expert) {
  const size = data.length / dims[2];
  return data.slice(expert * size, (expert + 1) * size);
}

/** Import the runtime. From elsewhere it is imported only as the very bytes that were tested. */
async function moduleOf(file) {
  if (!file.integrity) return import(new URL(file.path, import.meta.url).href).catch(() => { throw new Error(absent(file)); });
  const bytes = await bytesOf(file, () => {}), address = URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
  return import(address);
}

/** The bytes of a file; tells how many have arrived. */
async function bytesOf(file, tell) {
  const { path, bytes, integrity } = file;
  let response;
  try { response = await fetch(new URL(path, import.meta.url), integrity ? { integrity } : {}); }
  catch { throw new Error(absent(file)); }
  if (!response.ok) throw new Error(`${absent(file)} The server answered ${response.status}.`);
  const parts = [];
  let length = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    tell(path, length += value.length);
  }
  if (length !== bytes) throw new Error(`${path} has ${length} bytes here, expected ${bytes}: copy the page's folder again, as it was written.`);
  const whole = new Uint8Array(length);
  for (let at = 0; parts.length; at += parts.shift().length) whole.set(parts[0], at);
  return whole;
}

function absent({ path, integrity }) {
  return integrity
    ? `${path} did not arrive as it was tested: check the connection, or write the page with --runtime, which puts the runtime beside it.`
    : `${path} cannot be loaded: copy the page's folder whole.`;
}

let last = Promise.resolve();
self.onmessage = ({ data: { id, work, given } }) => {
  last = last.then(async () => {
    try {
      const answer = await WORK[work](given);
      self.postMessage({ id, answer }, [answer?.bitmap, answer?.logits?.buffer].filter(Boolean));
    } catch (error) {
      self.postMessage({ id, wrong: error instanceof RangeError ? "The browser has no memory left for this: use a smaller picture or model." : error.message || String(error) });
    }
  });
};
