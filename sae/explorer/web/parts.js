"use strict";
// The page's data. Each part is a script that calls parts.take(name, value): a page from disk may not read files.

const parts = (() => {
  const known = new Map();

  function entry(name) {
    if (!known.has(name)) {
      const made = {};
      made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
      known.set(name, made);
    }
    return known.get(name);
  }

  /** Loads data/<name>.js once; rejects where it is missing or broken. */
  function load(name) {
    const { promise, reject, asked } = entry(name);
    if (!asked) {
      entry(name).asked = true;
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      const failed = () => reject(new Error(`data/${name}.js is missing or broken: copy the whole explorer folder.`));
      script.onerror = failed;
      script.onload = () => (script.remove(), failed()); // no effect if the part has been taken
      document.head.append(script);
    }
    return promise;
  }

  /** Loads entry `place` of a series that is stored `perFile` entries to a file. */
  async function loadEntry(series, place, perFile) {
    const file = String(Math.floor(place / perFile)).padStart(4, "0");
    return (await parts.load(`${series}/${file}`))[place % perFile];
  }

  /** Unsigned integers of `bytes` bytes each from base64, little-endian. */
  function unpack(text, bytes) {
    const octets = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    if (bytes === 1) return octets;
    const view = new DataView(octets.buffer);
    const read = bytes === 2 ? (i) => view.getUint16(2 * i, true) : (i) => view.getUint32(4 * i, true);
    return Array.from({ length: octets.length / bytes }, (_, i) => read(i));
  }

  /** Splits places and values by `counts`: a list of {places, values}. */
  function spread(counts, places, values) {
    let end = 0;
    return Array.from(counts, (count) => {
      const first = end;
      end += count;
      return { places: places.slice(first, end), values: values.slice(first, end) };
    });
  }

  return { load, loadEntry, spread, take: (name, value) => entry(name).resolve(value), unpack };
})();
