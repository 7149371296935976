// The timeline: lanes of stretches on a canvas. Times are ticks; the whole step is `span` of them.
page.timeline = (function () {
  const canvas = document.getElementById("timeline-canvas");
  const said = document.getElementById("timeline-said");
  const about = page.data.timeline;
  const lanes = about.lanes.map(([rank, measured], place) => ({
    rank, measured, first: place ? about.ends[place - 1] : 0, stop: about.ends[place],
    label: measured ? "measured" : "rank " + rank,
  }));
  const span = 2 ** 28, axis = 26;
  const height = lanes.length <= 8 ? 34 : lanes.length <= 16 ? 26 : lanes.length <= 80 ? 14 : lanes.length <= 256 ? 8 : 4;
  let view = [0, span], chosen = -1, chosenLane = 0, left = 62, width = 0, colours = [], queued = false;

  const names = about.kinds.map(([kind]) => kind);
  const variable = (kind) => kind.startsWith("idle ") ? kind.replaceAll(" ", "-") : "work-" + kind.toLowerCase();
  const idle = names.map((kind) => kind.startsWith("idle ") || kind === "wait");
  function named(item) {
    const a = page.arrays, kind = names[a.kind[item]];
    if (kind === "FB") return `${a.stage[item]}F${a.microbatch[item]};${a.other_stage[item]}B${a.other_microbatch[item]}`;
    if (["sync", "update", "gather", "reduction"].includes(kind) || idle[a.kind[item]]) return kind;
    return `${a.stage[item]}${kind}${a.microbatch[item]}`;
  }
  function sentence(lane, item) {
    const a = page.arrays, kind = names[a.kind[item]], scale = about.seconds / span;
    const lasts = page.seconds((a.end[item] - a.start[item]) * scale);
    const from = page.seconds(a.start[item] * scale);
    const who = `Rank ${lane.rank}${lane.measured ? ", measured" : ""}`;
    if (kind.startsWith("idle ")) return `${who}: idle for ${lasts} from ${from}: ${kind.slice(5)}, ${about.meanings[kind]}`;
    const word = about.kinds[a.kind[item]][1];
    const where = a.stage[item] < 0 ? "" : `, microbatch ${a.microbatch[item]} on stage ${a.stage[item]}`;
    const label = kind === "wait" || a.stage[item] < 0 ? word : `${named(item)}, ${word}${where}`;
    return `${who}: ${label}; ${lasts} from ${from}`;
  }

  // Each stretch has the gap behind the one before on its lane, and its length.
  function summed() {
    const { gap, length } = page.arrays, start = new Uint32Array(gap.length), end = new Uint32Array(gap.length);
    for (const lane of lanes) {
      let at = 0;
      for (let item = lane.first; item < lane.stop; item++) {
        start[item] = at + gap[item];
        at = end[item] = start[item] + length[item];
      }
    }
    Object.assign(page.arrays, { start, end });
  }

  function size() {
    left = canvas.parentElement.clientWidth < 600 ? 50 : 70;
    width = Math.max(canvas.parentElement.clientWidth - left, 50);
    const ratio = devicePixelRatio || 1, tall = axis + lanes.length * height + 2;
    canvas.style.height = tall + "px";
    canvas.width = Math.round((left + width) * ratio);
    canvas.height = Math.round(tall * ratio);
    canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  // Stretches narrower than a pixel are mixed: each pixel shows the kind with the most time in it.
  function drawLane(pen, lane, top, tall) {
    const { start, end, kind } = page.arrays, [low, high] = view, scale = width / (high - low);
    const mixed = new Map();
    for (let item = lane.first; item < lane.stop; item++) {
      if (end[item] <= low || start[item] >= high) continue;
      const x = (Math.max(start[item], low) - low) * scale, far = (Math.min(end[item], high) - low) * scale;
      if (far - x < 1) {
        const column = Math.floor((x + far) / 2);
        let own = mixed.get(column);
        if (!own) mixed.set(column, (own = new Float32Array(names.length)));
        own[kind[item]] += far - x;
        continue;
      }
      paint(pen, kind[item], left + x, far - x, top, tall);
      if (!idle[kind[item]] && tall >= 12 && far - x > 18) label(pen, item, left + x, far - x, top, tall);
    }
    for (const [column, own] of mixed) {
      let best = 0;
      for (let k = 1; k < own.length; k++) if (own[k] > own[best]) best = k;
      paint(pen, best, left + column, 1, top, tall);
    }
  }
  function paint(pen, kind, x, wide, top, tall) {
    pen.fillStyle = colours[kind];
    const gap = wide > 4 ? 1 : 0, low = idle[kind] ? Math.max(tall * 0.38, 2) : tall;
    pen.fillRect(x, top + tall - low, wide - gap, low);
  }
  function label(pen, item, x, wide, top, tall) {
    const text = named(item);
    const own = pen.measureText(text).width;
    if (own + 2 > wide) return;
    pen.fillStyle = page.paint.onWork;
    pen.fillText(text, x + (wide - own) / 2, top + tall / 2 + 0.5);
  }

  function draw() {
    queued = false;
    const pen = canvas.getContext("2d"), gap = height >= 8 ? 2 : height >= 6 ? 1 : 0;
    page.paint = { ink: page.colour("ink"), soft: page.colour("soft"), rule: page.colour("rule"), onWork: page.colour("on-work"),
      paper: page.colour("paper"), focus: page.colour("focus") };
    colours = names.map((kind) => page.colour(variable(kind)));
    pen.fillStyle = page.paint.paper;
    pen.fillRect(0, 0, left + width, axis + lanes.length * height + 2);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    drawAxis(pen);
    pen.font = (height >= 20 ? "11px" : "10px") + " system-ui, sans-serif";
    const every = Math.ceil(12 / height);
    lanes.forEach((lane, place) => {
      const top = axis + place * height;
      if (place % every === 0) {
        pen.fillStyle = lane.measured ? page.paint.soft : page.paint.ink;
        pen.fillText(left < 60 ? lane.label.replace("rank ", "r").replace("measured", "meas.") : lane.label, 0, top + height / 2);
      }
      drawLane(pen, lane, top, height - gap);
    });
    if (chosen >= 0) outline(pen);
    canvas.dataset.low = view[0] / span;
    canvas.dataset.high = view[1] / span;
  }
  function drawAxis(pen) {
    const scale = about.seconds / span, low = view[0] * scale, high = view[1] * scale;
    const rough = (high - low) / Math.max(2, width / 110), power = 10 ** Math.floor(Math.log10(rough || 1));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    pen.strokeStyle = page.paint.rule;
    pen.fillStyle = page.paint.soft;
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) {
      const x = Math.round(left + ((at - low) / (high - low)) * width) + 0.5;
      pen.beginPath();
      pen.moveTo(x, 18);
      pen.lineTo(x, axis + lanes.length * height);
      pen.stroke();
      const text = Math.abs(at) < step / 1e6 ? "0 s" : page.seconds(Number(at.toPrecision(12)));
      const wide = pen.measureText(text).width;
      pen.fillText(text, Math.min(Math.max(x - wide / 2, left), left + width - wide), 9);
    }
  }
  function outline(pen) {
    const { start, end } = page.arrays, scale = width / (view[1] - view[0]);
    const x = left + Math.max(0, (start[chosen] - view[0]) * scale);
    const far = left + Math.min(width, (end[chosen] - view[0]) * scale);
    if (far < left || x > left + width) return;
    pen.strokeStyle = page.paint.ink;
    pen.lineWidth = 2;
    pen.strokeRect(x, axis + chosenLane * height, Math.max(far - x, 2), height - 1);
    pen.lineWidth = 1;
  }
  const later = () => { if (!queued && page.arrays.start) { queued = true; requestAnimationFrame(draw); } };

  function look(low, high) {
    const wide = Math.min(Math.max(high - low, 400), span);
    low = Math.min(Math.max(low, 0), span - wide);
    view = [low, low + wide];
    later();
  }
  function zoom(factor, at = (view[0] + view[1]) / 2) {
    look(at - (at - view[0]) * factor, at + (view[1] - at) * factor);
  }
  const move = (share) => look(view[0] + share * (view[1] - view[0]), view[1] + share * (view[1] - view[0]));
  const whole = () => look(0, span);
  const tickAt = (x) => view[0] + ((x - left) / width) * (view[1] - view[0]);

  // Among stretches that overlap, such as a sync beside a backward, the later one is on top.
  function itemAt(place, tick) {
    const lane = lanes[place], { start, end } = page.arrays;
    for (let item = lane.stop - 1; item >= lane.first; item--) if (start[item] <= tick && tick < end[item]) return item;
    return -1;
  }
  function choose(place, item, follow) {
    chosen = item;
    chosenLane = place;
    if (item >= 0) {
      said.textContent = sentence(lanes[place], item);
      const { start, end } = page.arrays, wide = view[1] - view[0];
      if (follow && (start[item] < view[0] || end[item] > view[1])) {
        const middle = (start[item] + end[item]) / 2;
        look(middle - wide / 2, middle + wide / 2);
      }
    }
    later();
  }
  function pointed(event) {
    const box = canvas.getBoundingClientRect();
    const place = Math.floor((event.clientY - box.top - axis) / height), x = event.clientX - box.left;
    if (place < 0 || place >= lanes.length || x < left) return;
    const item = itemAt(place, tickAt(x));
    if (item >= 0 && item !== chosen) choose(place, item, false);
  }

  const fingers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event.clientX);
    canvas.setPointerCapture(event.pointerId);
    pointed(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (before === undefined) return pointed(event);
    const others = [...fingers].filter(([id]) => id !== event.pointerId);
    const box = canvas.getBoundingClientRect();
    canvas.classList.add("moving");
    if (others.length) {
      const other = others[0][1], was = Math.abs(before - other), now = Math.abs(event.clientX - other);
      if (was > 5 && now > 5) zoom(was / now, tickAt((event.clientX + other) / 2 - box.left));
    } else {
      move((before - event.clientX) / width);
    }
    fingers.set(event.pointerId, event.clientX);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, (event) => { fingers.delete(event.pointerId); canvas.classList.remove("moving"); });
  }
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(Math.exp(event.deltaY / 300), tickAt(event.clientX - canvas.getBoundingClientRect().left));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(0.4, tickAt(event.clientX - canvas.getBoundingClientRect().left)));

  function walk(step) {
    const lane = lanes[chosenLane];
    if (lane.first === lane.stop) return;
    const next = chosen < 0 ? lane.first : chosen + step;
    choose(chosenLane, Math.min(Math.max(next, lane.first), lane.stop - 1), true);
  }
  function climb(step) {
    const place = Math.min(Math.max(chosenLane + step, 0), lanes.length - 1), { start, end } = page.arrays;
    const tick = chosen < 0 ? view[0] : (start[chosen] + end[chosen]) / 2, found = itemAt(place, tick);
    choose(place, found >= 0 ? found : lanes[place].first, true);
  }
  const keys = {
    ArrowLeft: () => walk(-1), ArrowRight: () => walk(1), ArrowUp: () => climb(-1), ArrowDown: () => climb(1),
    Home: () => choose(chosenLane, lanes[chosenLane].first, true), End: () => choose(chosenLane, lanes[chosenLane].stop - 1, true),
    "+": () => zoomChosen(0.5), "=": () => zoomChosen(0.5), "-": () => zoomChosen(2), "0": whole,
  };
  function zoomChosen(factor) {
    const { start, end } = page.arrays;
    zoom(factor, chosen >= 0 && end[chosen] > view[0] && start[chosen] < view[1] ? (start[chosen] + end[chosen]) / 2 : undefined);
  }
  canvas.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  const buttons = { in: () => zoomChosen(0.5), out: () => zoomChosen(2), left: () => move(-0.4), right: () => move(0.4), all: whole };
  document.querySelectorAll("[data-zoom]").forEach((one) => one.addEventListener("click", buttons[one.dataset.zoom]));

  function resized() { if (page.arrays.start) { size(); draw(); } }
  new ResizeObserver(() => { if (Math.abs(canvas.parentElement.clientWidth - left - width) > 1) resized(); }).observe(canvas.parentElement);
  page.redraw.push(later);
  addEventListener("beforeprint", resized);
  addEventListener("afterprint", resized);
  return page.arraysRead.then(() => { summed(); resized(); performance.mark("timeline"); document.documentElement.dataset.timeline = "drawn"; });
})();
