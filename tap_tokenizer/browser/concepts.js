// Which concepts an embedding is nearest to.

/** A concept bank's file in safetensors, float16: a column of `weights` for each of `names`. */
export function readConcepts(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const [start, end] = header.weights.data_offsets.map((offset) => 8 + length + offset);
  return { names: JSON.parse(header.__metadata__.names), weights: Float32Array.from(new Uint16Array(buffer.slice(start, end)), fromHalf) };
}

function fromHalf(bits) {
  const exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024, sign = bits >> 15 ? -1 : 1;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

/** The most probable concepts as [name, probability], best first: softmax of the embedding, at length 1, times the columns. */
export function bestConcepts(embed, { names, weights }, count = 5) {
  const norm = Math.hypot(...embed) || 1, logits = new Float64Array(names.length);
  embed.forEach((value, i) => {
    for (let j = 0; j < names.length; j++) logits[j] += (value / norm) * weights[i * names.length + j];
  });
  const top = logits.reduce((a, b) => Math.max(a, b)), powers = logits.map((logit) => Math.exp(logit - top));
  const sum = powers.reduce((a, b) => a + b);
  return [...powers.keys()].sort((a, b) => powers[b] - powers[a]).slice(0, count).map((j) => [names[j], powers[j] / sum]);
}
