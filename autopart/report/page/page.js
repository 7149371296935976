"use strict";
// Reads the page's data: one JSON document, and arrays in compressed bytes.
const page = { data: JSON.parse(document.getElementById("data").textContent), arrays: {}, redraw: [] };

page.unpacked = async function (id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream);
};

page.arraysRead = (async function () {
  const block = await (await page.unpacked("arrays")).arrayBuffer();
  const types = { uint8: Uint8Array, uint32: Uint32Array, int32: Int32Array, float32: Float32Array };
  for (const [name, [type, at, length]] of Object.entries(page.data.arrays)) {
    page.arrays[name] = new types[type](block, at, length);
  }
})();

page.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

page.seconds = function (value) {
  const size = Math.abs(value);
  const [unit, scale] = size >= 1 ? ["s", 1] : size >= 1e-3 ? ["ms", 1e3] : ["µs", 1e6];
  return Number((value * scale).toPrecision(4)) + " " + unit;
};

page.themed = function () { for (const draw of page.redraw) draw(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", page.themed);
