// onnxruntime-web has no kernel that multiplies with 4-bit weights in WebAssembly: it would expand every matrix again for each
// token. So each MatMulNBits becomes a FusedMatMul with the same values in float32, expanded once. Only this is changed of the
// graph, in memory. Field numbers are those of onnx.proto.

const LENGTHS = 2, VARINT = 0;
const utf8 = new TextEncoder(), read8 = new TextDecoder();

/** A message as [field, wire type, value]: bytes of a part, or a BigInt. */
function parse(bytes) {
  const fields = [];
  let at = 0;
  const varint = () => {
    let value = 0n, shift = 0n;
    for (;;) {
      const byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
      shift += 7n;
    }
  };
  while (at < bytes.length) {
    const key = Number(varint()), wire = key & 7;
    let value;
    if (wire === VARINT) value = varint();
    else {
      const size = wire === LENGTHS ? Number(varint()) : wire === 5 ? 4 : 8;
      value = bytes.subarray(at, at += size);
    }
    fields.push([key >> 3, wire, value]);
  }
  return fields;
}

function write(fields) {
  const parts = [];
  const varint = (value) => {
    const made = [];
    for (; value > 127n; value >>= 7n) made.push(Number(value & 127n) | 128);
    parts.push(Uint8Array.from([...made, Number(value)]));
  };
  for (const [field, wire, value] of fields) {
    varint(BigInt(field * 8 + wire));
    if (wire === VARINT) varint(value);
    else {
      if (wire === LENGTHS) varint(BigInt(value.length));
      parts.push(value);
    }
  }
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { whole.set(part, at); at += part.length; }
  return whole;
}

const all = (fields, number) => fields.filter(([field]) => field === number).map(([, , value]) => value);
const word = (fields, number) => read8.decode(all(fields, number)[0] ?? new Uint8Array());
const string = (field, text) => [field, LENGTHS, utf8.encode(text)];
const message = (field, fields) => [field, LENGTHS, write(fields)];

/** Sizes of a tensor: one by one, or packed into one part. */
function sizes(tensor) {
  return tensor.filter(([field]) => field === 1).flatMap(([, wire, value]) => {
    if (wire === VARINT) return [Number(value)];
    return parse(Uint8Array.from([...value].reduce((made, byte, i) => {
      if (i === 0 || value[i - 1] < 128) made.push(8);
      made.push(byte);
      return made;
    }, []))).map(([, , one]) => Number(one));
  });
}

function held(tensor, data) {
  const raw = all(tensor, 9)[0];
  if (raw) return raw;
  const places = Object.fromEntries(all(tensor, 13).map((entry) => { const pair = parse(entry); return [word(pair, 1), word(pair, 2)]; }));
  const start = Number(places.offset ?? 0);
  return data.subarray(start, start + Number(places.length));
}

/** float32 [N, K] of blocks of `bits`, of which the first value is in the lowest bits of a byte. */
function expanded(codes, scales, zeros, { N, K, bits, block_size: block }) {
  const out = new Float32Array(N * K), blocks = Math.ceil(K / block), each = 8 / bits, mask = (1 << bits) - 1;
  const blob = block / each, zeroRow = Math.ceil(blocks / each), middle = 1 << (bits - 1);
  for (let row = 0; row < N; row++) {
    for (let b = 0; b < blocks; b++) {
      const scale = scales[row * blocks + b], end = Math.min(K, (b + 1) * block);
      const zero = zeros ? (zeros[row * zeroRow + Math.floor(b / each)] >> (bits * (b % each))) & mask : middle;
      let at = (row * blocks + b) * blob, k = row * K + b * block;
      const stop = row * K + end;
      if (bits === 4) {
        for (; k < stop; at++) { const byte = codes[at]; out[k++] = ((byte & 15) - zero) * scale; if (k < stop) out[k++] = ((byte >> 4) - zero) * scale; }
      } else {
        for (; k < stop; at++) for (let part = 0; part < each && k < stop; part++) out[k++] = (((codes[at] >> (bits * part)) & mask) - zero) * scale;
      }
    }
  }
  return out;
}

/** The graph with expanded matrices, their data as external files, and the bytes that these take; null where they would take more
 *  than `most`. A matrix whose scales are computed in the graph stays as it is. */
export function expand(graphBytes, data, most) {
  const model = parse(graphBytes), graph = parse(all(model, 7)[0]);
  const tensors = new Map(graph.filter(([field]) => field === 5).map(([, , value]) => { const one = parse(value); return [word(one, 8), one]; }));
  const files = [], made = new Map();
  let total = 0;
  const nodes = graph.map((entry) => {
    if (entry[0] !== 1) return entry;
    const node = parse(entry[2]);
    if (word(node, 4) !== "MatMulNBits") return entry;
    const inputs = all(node, 1).map((name) => read8.decode(name));
    const told = Object.fromEntries(all(node, 5).map((one) => { const a = parse(one); return [word(a, 1), Number(all(a, 3)[0] ?? 0n)]; }));
    const settings = { bits: 4, ...told };
    const [codes, scales, zeros] = [1, 2, 3].map((i) => (inputs[i] ? tensors.get(inputs[i]) : null));
    const plain = codes && scales && Number(all(scales, 2)[0]) === 1 && (!inputs[3] || (zeros && Number(all(zeros, 2)[0]) === 2));
    if (!plain || inputs.slice(4).some(Boolean)) return entry;
    const key = `${inputs[1]} float32`;
    if (!made.has(key)) {
      total += 4 * settings.N * settings.K;
      made.set(key, { settings, codes, scales, zeros });
    }
    const transposed = message(5, [string(1, "transB"), [3, VARINT, 1n], [20, VARINT, 2n]]);
    return message(1, [string(1, inputs[0]), string(1, key), string(2, read8.decode(all(node, 2)[0])), string(3, word(node, 3)), string(4, "FusedMatMul"), transposed, string(7, "com.microsoft")]);
  });
  if (total > most || !made.size) return null;
  for (const [key, { settings, codes, scales, zeros }] of made) {
    const bytes = held(scales, data);
    const values = new Float32Array(bytes.slice().buffer);
    const floats = expanded(held(codes, data), values, zeros ? held(zeros, data) : null, settings);
    const path = `expanded-${files.length}`, pair = (name, value) => message(13, [string(1, name), string(2, value)]);
    files.push({ path, data: new Uint8Array(floats.buffer) });
    nodes.push(message(5, [
      [1, VARINT, BigInt(settings.N)], [1, VARINT, BigInt(settings.K)], [2, VARINT, 1n], string(8, key),
      pair("location", path), pair("offset", "0"), pair("length", String(floats.byteLength)), [14, VARINT, 1n],
    ]));
  }
  const used = new Set(nodes.filter(([field]) => field === 1).flatMap(([, , value]) => all(parse(value), 1).map((name) => read8.decode(name))));
  const kept = nodes.filter(([field, , value]) => field !== 5 || used.has(word(parse(value), 8)));
  return { graph: write(model.map((entry) => (entry[0] === 7 ? message(7, kept) : entry))), files, bytes: total };
}
