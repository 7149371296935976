// The charts: plotly draws them one after the other, once the timeline stands.
(function () {
  const drawn = new Set();

  // A colour in a figure is a variable of the style sheet, so that it follows the theme.
  function filled(value) {
    if (typeof value === "string") return value.startsWith("var(--") ? page.colour(value.slice(6, -1)) : value;
    if (Array.isArray(value)) return value.map(filled);
    if (value && typeof value === "object" && !ArrayBuffer.isView(value)) {
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, filled(part)]));
    }
    return value;
  }
  function layoutOf(given) {
    const ink = page.colour("ink"), rule = page.colour("rule"), narrow = innerWidth < 600;
    const axis = (own) => ({ automargin: true, gridcolor: rule, linecolor: rule, zerolinecolor: rule, tickcolor: rule, fixedrange: false, ...own });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, -apple-system, sans-serif", size: narrow ? 11 : 13 },
      margin: { l: 10, r: narrow ? 12 : 24, t: 24, b: 10 }, dragmode: narrow ? false : "zoom",
      showlegend: false, autosize: true,
      hoverlabel: { bgcolor: page.colour("panel"), bordercolor: rule, font: { color: ink } },
      ...given, xaxis: axis(given.xaxis), yaxis: axis(given.yaxis),
    };
  }
  const settings = { responsive: true, displaylogo: false, displayModeBar: false };

  function memoryChart() {
    const about = page.data.memory, place = Number(document.getElementById("memory-rank").value);
    const first = place ? about.ends[place - 1] : 0, stop = about.ends[place], a = page.arrays;
    const limit = about.limits[place], [unit, scale] = limit >= 2 ** 30 ? ["GiB", 2 ** 30] : ["MiB", 2 ** 20];
    const x = Array.from(a.memory_at.subarray(first, stop), (tick) => (tick / 2 ** 28) * about.seconds);
    x.unshift(0);
    x.push(about.seconds);
    const moving = { stash: a.memory_stash, workspace: a.memory_workspace, buffers: a.memory_messages, gradients: a.memory_gradients,
      gathered: a.memory_gathered, reducing: a.memory_reducing };
    const words = { gathered: "whole weights", reducing: "whole gradients" };
    const data = ["weights", "gradients", "optimizer", "reserve", "stash", "workspace", "gathered", "reducing", "buffers"].map((name) => {
      const always = (about.constant[name] || [])[place] || 0, own = moving[name];
      const y = x.map(() => always / scale);
      if (own) for (let at = first; at < stop; at++) y[at - first + 1] = (always + own[at]) / scale;
      if (own && stop > first) y[y.length - 1] = y[y.length - 2];
      return { name, x, y, stackgroup: "all", mode: "lines", line: { shape: "hv", width: 0, color: `var(--memory-${name})` },
        fillcolor: `var(--memory-${name})`, hovertemplate: `${words[name] || name} %{y:.2f} ${unit}<extra></extra>` };
    }).filter((one) => one.y.some((value) => value > 0));
    return { data, layout: { height: 340, hovermode: "x unified", xaxis: { title: { text: "seconds since the step began" } },
      yaxis: { title: { text: unit }, rangemode: "tozero" },
      shapes: [{ type: "line", x0: 0, x1: 1, xref: "paper", y0: limit / scale, y1: limit / scale, line: { color: "var(--ink)", width: 1.5, dash: "dash" } }],
      annotations: [{ x: 1, xref: "paper", y: limit / scale, text: `limit ${(limit / scale).toFixed(1)} ${unit}`, showarrow: false, xanchor: "right", yanchor: "bottom" }] } };
  }
  const figureOf = (name) => name === "memory" ? memoryChart() : page.data.charts[name];
  function draw(name) {
    const figure = figureOf(name);
    return Plotly.react("chart-" + name, filled(figure.data), layoutOf(filled(figure.layout)), settings).then(() => drawn.add(name));
  }

  async function start() {
    await page.timeline;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const script = document.createElement("script");
    script.textContent = await (await page.unpacked("plotly")).text();
    document.head.append(script);
    const places = [...document.querySelectorAll(".chart")];
    for (const place of places) {
      await draw(place.id.slice(6));
      await new Promise((done) => setTimeout(done));
    }
    document.getElementById("memory-rank").addEventListener("change", () => draw("memory"));
    page.redraw.push(() => drawn.forEach(draw));
    performance.mark("charts");
    document.documentElement.dataset.charts = "drawn";
  }
  start();
})();
