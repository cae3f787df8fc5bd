// ---------------------------------------------------------------------- numbers, as coding.py writes them

// Text as text_of_bytes writes it: 5 characters of 4 bytes, the last group cut.
const DIGITS = new Uint8Array(128);
[..."0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%,()*+-;.=:?@^_`{|}~"]
  .forEach((one, i) => { DIGITS[one.charCodeAt(0)] = i; });
function bytesOfText(text) {
  const groups = Math.ceil(text.length / 5), found = new Uint8Array(4 * groups), view = new DataView(found.buffer);
  for (let group = 0, at = 0; group < groups; group++) {
    let number = 0;
    for (let i = 0; i < 5; i++, at++) number = number * 85 + (at < text.length ? DIGITS[text.charCodeAt(at)] : 84);
    view.setUint32(4 * group, number);
  }
  return found.subarray(0, 4 * groups - (5 * groups - text.length));
}
async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
function once(make) {
  const made = new Map();
  return (key) => { if (!made.has(key)) made.set(key, make(key)); return made.get(key); };
}
// The upper bytes of all numbers, and then the lower ones.
function planes(bytes, from, count) {
  const found = new Uint16Array(count);
  for (let i = 0; i < count; i++) found[i] = (bytes[from + i] << 8) | bytes[from + count + i];
  return found;
}

const BITS = 12, TOP = 1023, COUNTS = 1, NOT_FINITE = 2;
// What each code is of the largest number of its row, as parts_of_codes of steps.py.
const partsOfCodes = Float64Array.from({ length: facts.levels + 1 }, (_, code) => ((Math.sqrt(1 + (8 * code) / facts.levels) - 1) / 2) ** 2);

// What layers of one family share: of each class of maps, contexts by prediction, and codes by slot.
const modelOf = once(async (index) => {
  const { own, other, classes } = facts.models[index];
  return { own, other, classes: await Promise.all(classes.map(async ({ weights, bounds, frequencies }) => {
    const width = facts.levels + 1, count = bounds.length + 1;
    const often = planes(await inflated(bytesOfText(frequencies)), 0, count * width);
    const before = new Uint16Array(count * width), codes = new Uint8Array(count << BITS), contexts = new Uint8Array(TOP + 1);
    for (let context = 0; context < count; context++)
      for (let code = 0, from = 0; code < width; code++) {
        const at = context * width + code;
        before[at] = from;
        codes.fill(code, (context << BITS) + from, (context << BITS) + from + often[at]);
        from += often[at];
      }
    for (let said = 0, context = 0; said <= TOP; said++) {
      while (context < bounds.length && bounds[context] <= said) context++;
      contexts[said] = context;
    }
    return { weights, width, often, before, codes, contexts };
  })) };
});

// The codes of one map, (rows, keys); a row that is not told is 0. other: those of the reference, or null.
function decodedMap(model, weights, bytes, at, told, k, other) {
  const { width, often, before, codes, contexts } = weights, found = new Uint8Array(told.length * k);
  const rows = [], word = (place) => bytes[place] | (bytes[place + 1] << 8);
  for (let q = 0; q < told.length; q++) if (told[q]) rows.push(q);
  let state = word(at) * 65536 + word(at + 2), next = at + 4;
  const w = weights.weights, constant = w[w.length - 1], own = model.own.length, mask = (1 << BITS) - 1;
  const starts = new Int32Array(own + model.other.length), lefts = [...model.own, ...model.other].map(([, left]) => left);
  rows.forEach((q, i) => {
    model.own.forEach(([up], n) => { starts[n] = i >= up ? rows[i - up] * k : -1; });
    model.other.forEach(([up], n) => { starts[own + n] = i >= up ? rows[i - up] * k : -1; });
    for (let key = 0; key < k; key++) {
      let said = constant;
      for (let n = 0; n < starts.length; n++) {
        if (starts[n] < 0 || key < lefts[n]) continue;
        said += w[n] * (n < own ? found : other)[starts[n] + key - lefts[n]];
      }
      said >>= 4;
      const context = contexts[said < 0 ? 0 : said > TOP ? TOP : said], slot = state & mask;
      const code = codes[(context << BITS) + slot], place = context * width + code;
      found[q * k + key] = code;
      state = often[place] * Math.floor(state / (mask + 1)) + slot - before[place];
      if (state < 65536) { state = state * 65536 + word(next); next += 2; }
    }
  });
  return found;
}

// One layer of one side: small parts at once, maps when they are looked at.
const layerOf = once(async (index) => {
  const { model, reference, shape: [b, heads, q, k], divergences: n } = facts.layers[index];
  const bytes = bytesOfText($("layer-" + index).textContent), length = new DataView(bytes.buffer).getUint32(0, true);
  const [side, models] = await Promise.all([inflated(bytes.subarray(4, 4 + length)), modelOf(model)]);
  const other = reference === null ? null : await layerOf(reference);
  let from = 0;
  const take = (count) => { from += count; return side.subarray(from - count, from); };
  const numbers = (count) => { from += 2 * count; return planes(side, from - 2 * count, count); };
  const exponents = numbers(b * heads * q), states = take(b * heads * q);
  const divergences = numbers(b * n * q), compared = take(b * n * q), classes = take(b * heads);
  const lengths = new DataView(side.buffer, side.byteOffset + from), places = new Float64Array(b * heads + 1);
  places[0] = 4 + length;
  for (let map = 0; map < b * heads; map++) places[map + 1] = places[map] + 2 * lengths.getUint32(4 * map, true);
  const codes = once((map) => {
    const told = Array.from(states.subarray(map * q, (map + 1) * q), (state) => state === COUNTS);
    return decodedMap(models, models.classes[classes[map]], bytes, places[map], told, k, other === null ? null : other.codes(map));
  });
  const scale = (map, row) => 2 ** (-exponents[map * q + row] / (2 * facts.levels));
  const each = Array.from({ length: heads }, (_, head) => head);
  const one = (example, head, row, key) => {
    const map = example * heads + head;
    return states[map * q + row] & NOT_FINITE ? NaN : scale(map, row) * partsOfCodes[codes(map)[row * k + key]];
  };
  const layer = {
    codes,
    counts: (example, head, row) => (head === MEAN ? each.every((i) => layer.counts(example, i, row)) : (states[(example * heads + head) * q + row] & COUNTS) !== 0),
    at(example, head, row, key) {
      if (head !== MEAN) return one(example, head, row, key);
      return each.reduce((sum, i) => sum + one(example, i, row, key), 0) / heads;
    },
    // null: not compared; one head of unequally many has no counterpart
    kl(example, head, row) {
      const place = (example * n + (head === MEAN ? n - 1 : head)) * q + row;
      if (n === 0 || (head !== MEAN && head >= n - 1) || compared[place] !== 1) return null;
      const bits = new DataView(new ArrayBuffer(4));
      bits.setUint16(0, divergences[place]);
      return bits.getFloat32(0);
    },
  };
  return layer;
});
